"""The chart's streams and consumer on a real broker, judged by the program; and a planted mistake."""
import copy
import json
import os
import subprocess
import unittest

import broker
import checks

NACK = checks.render([checks.CHART / "values-prod.yaml"], ["nats.provision=nack", "nats.replicas=1"])


def findings(port, settings):
    """What `doctor` says about the broker. Nothing else answers, which it says as well."""
    environment = {**settings, "NATS_URL": f"nats://127.0.0.1:{port}", "DATABASE_URL": "postgres://x@127.0.0.1:1/x",
                   "DRAGONFLY_URL": "redis://127.0.0.1:1"}
    done = subprocess.run([os.environ["AGENT_EXECUTOR"], "doctor", "--json"], env=environment, capture_output=True,
                          text=True, timeout=120)
    report = json.loads(done.stdout)
    server = next(server for server in report["servers"] if server["name"] == "nats")
    return server, [found for found in report["findings"] if found["code"] == "broker"]


def settings_of(documents):
    data = checks.of_kind(documents, "ConfigMap")[0]["data"]
    return {name: value for name, value in data.items() if name.startswith("NATS_") and name != "NATS_URL"}


class Broker(unittest.TestCase):
    def judged(self, documents):
        with broker.server() as port:
            broker.apply(port, documents)
            return findings(port, settings_of(documents))

    def test_the_program_finds_nothing_wrong_with_the_streams_and_the_consumer_of_the_chart(self):
        server, found = self.judged(NACK)
        self.assertIsNone(server["error"])
        self.assertEqual(found, [])

    def test_it_finds_what_is_wrong(self):
        planted = copy.deepcopy(NACK)
        checks.of_kind(planted, "Consumer")[0]["spec"]["maxDeliver"] = 5
        _, found = self.judged(planted)
        self.assertTrue(any("max_deliver" in finding["what"] for finding in found), found)
        planted = [document for document in NACK if document["metadata"]["name"] != "agent-executor-results"]
        _, found = self.judged(planted)
        self.assertTrue(any("AGENT_RESULTS" in finding["what"] for finding in found), found)

    def test_a_field_that_nobody_knows_is_found(self):
        planted = copy.deepcopy(NACK)
        checks.of_kind(planted, "Stream")[0]["spec"]["maxage"] = "1h"
        with self.assertRaises(ValueError):
            self.judged(planted)


if __name__ == "__main__":
    unittest.main()
