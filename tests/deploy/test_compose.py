"""compose.yaml and what it mounts; and the checks against planted mistakes."""
import unittest

import checks

COMPOSE = (checks.ROOT / "compose.yaml").read_text()


class Compose(unittest.TestCase):
    def test_it_refers_to_what_is_there(self):
        self.assertEqual(checks.compose_problems(COMPOSE), [])

    def test_prometheus_reads_its_configuration(self):
        path = checks.ROOT / "observability/prometheus.yaml"
        self.assertEqual(checks.complaint(checks.run("promtool", "check", "config", "--syntax-only", path)), [])

    def test_planted_mistakes_are_found(self):
        for old, new, words in [
            ("nats:2.11-alpine", "nats", "has no version"),
            ("nats:2.11-alpine", "nats:latest", "has no version"),
            ("./observability/otel-collector.yaml", "./observability/otel.yaml", "there is no ./observability/otel.yaml"),
            ("NATS_URL:", "NATS_ULR:", "NATS_ULR is no setting"),
            ("depends_on: [prometheus]", "depends_on: [prometeus]", "prometeus, which is not there"),
            ('"nats:/data"', '"nat:/data"', "volume nat is not declared"),
            ("test: [CMD, pg_isready, -U, agent_executor]", "", "postgres has no healthcheck"),
        ]:
            self.assertIn(old, COMPOSE)
            text = COMPOSE.replace(old, new)
            if words.startswith("postgres has"):
                text = text.replace("    healthcheck:\n      \n      interval: 2s\n      retries: 30\n", "", 1)
            problems = checks.compose_problems(text)
            self.assertTrue(any(words in problem for problem in problems), (words, problems))

    def test_a_wrong_scrape_configuration_is_found(self):
        code, output = checks.run("promtool", "check", "config", "--syntax-only", "/dev/stdin", text="scrape_config: []\n")
        self.assertNotEqual(code, 0, output)


if __name__ == "__main__":
    unittest.main()
