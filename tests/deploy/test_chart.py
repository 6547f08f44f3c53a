"""The chart: every values file against lint, schemas, pod security and itself; and each check against a planted mistake."""
import copy
import shutil
import tempfile
import pathlib
import unittest

import checks


def mutated(documents, kind, change):
    """A copy in which `change` was applied to the first object of a kind."""
    copies = copy.deepcopy(documents)
    change(checks.of_kind(copies, kind)[0])
    return copies


class EveryValuesFile(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.rendered = {name: checks.render(files) for name, files in checks.values_files().items()}
        cls.rendered["nack"] = checks.render([checks.CHART / "values-prod.yaml"], [
            "nats.provision=nack", "keda.inFlight.enabled=true", "keda.prometheusAuthSecret=prometheus",
            "networkPolicy.kedaToNats.enabled=true", "monitoring.kind=PodMonitor"])
        cls.prod = cls.rendered["values-prod"]

    def test_is_linted(self):
        for name, files in checks.values_files().items():
            self.assertEqual(checks.lint(files), [], name)

    def test_satisfies_the_schemas_of_kubernetes_and_the_operators(self):
        self.assertEqual(checks.schema_problems(self.rendered), [])

    def test_satisfies_the_restricted_pod_security_standard(self):
        for name, documents in self.rendered.items():
            self.assertEqual(checks.restricted(documents), [], name)

    def test_gives_settings_that_exist_and_fit_each_other(self):
        for name, documents in self.rendered.items():
            self.assertEqual(checks.settings_problems(documents), [], name)

    def test_refers_to_what_is_there(self):
        for name, documents in self.rendered.items():
            self.assertEqual(checks.reference_problems(documents), [], name)

    def test_prod_denies_all_traffic_but_the_neighbours(self):
        self.assertEqual(checks.network_problems(self.prod), [])

    def test_sizes_reach_from_a_tenth_of_a_core_to_four(self):
        def requests(name):
            deployment = checks.of_kind(self.rendered[name], "Deployment")[0]
            return deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]
        self.assertEqual(requests("prod-micro"), {"cpu": "100m", "memory": "256Mi"})
        self.assertEqual(requests("prod-large"), {"cpu": "4", "memory": "8Gi"})

    def test_nack_makes_the_streams_that_the_program_would_make(self):
        streams = {stream["spec"]["name"]: stream["spec"] for stream in checks.of_kind(self.rendered["nack"], "Stream")}
        self.assertEqual(set(streams), {"AGENT_EXECUTION", "AGENT_RESULTS", "AGENT_DLQ", "AGENT_ADVISORIES"})
        self.assertEqual(streams["AGENT_EXECUTION"]["retention"], "workqueue")
        source = (checks.ROOT / "src/queue/nats/check.rs").read_text()
        consumer = checks.of_kind(self.rendered["nack"], "Consumer")[0]["spec"]
        self.assertIn(f"MAX_DELIVER: i64 = {consumer['maxDeliver']};", source)
        self.assertIn(f"MAX_ACK_PENDING: i64 = {consumer['maxAckPending']:_};", source)

    def test_the_secret_is_asked_for_before_the_migration_that_needs_it(self):
        weights = {}
        for document in self.rendered["nack"]:
            annotations = document["metadata"].get("annotations", {})
            if annotations.get("helm.sh/hook") == "pre-install,pre-upgrade":
                weights[document["kind"]] = int(annotations["helm.sh/hook-weight"])
        self.assertEqual(sorted(weights, key=weights.get), ["ExternalSecret", "Job"])

    def test_an_upgrade_deletes_nothing_that_holds_data(self):
        # Helm deletes the object of a hook before it makes it anew.
        for document in self.rendered["nack"]:
            is_hook = "helm.sh/hook" in document["metadata"].get("annotations", {})
            self.assertFalse(is_hook and document["kind"] in ("Stream", "Consumer", "ConfigMap", "Secret"), document["kind"])
            if document["kind"] == "ExternalSecret":
                self.assertEqual(document["spec"]["target"]["creationPolicy"], "Orphan")

    def test_the_program_takes_its_settings(self):
        for name, documents in self.rendered.items():
            self.assertEqual(checks.refused_settings(documents), [], name)


class APlantedMistakeIsFound(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.prod = checks.render([checks.CHART / "values-prod.yaml"])

    def assert_found(self, problems, words):
        self.assertTrue(any(words in problem for problem in problems), f"{words!r} is not in {problems}")

    def test_by_lint(self):
        with tempfile.TemporaryDirectory() as folder:
            chart = pathlib.Path(folder) / "agent-executor"
            shutil.copytree(checks.CHART, chart)
            service = chart / "templates/service.yaml"
            service.write_text(service.read_text().replace("kind: Service", "kind: Service\n  wrong: [", 1))
            self.assert_found(checks.lint(chart=chart), "service.yaml")

    def test_by_the_schema_of_values(self):
        nonsense = [
            "replicas=-1", "replicaz=2", "size=huge", "service.port=0", "image.digest=sha256:1", "image.pullPolicy=Sometimes",
            "config.OPENAI_API_KEY=sk", "config.lower=1", "keda.maxReplicas=0", "keda.pollingInterval=0",
            "nats.provision=maybe", "nats.replicas=6", "monitoring.kind=Scrape", "shutdownGraceSeconds=-1",
            "terminationMarginSeconds=0", "nats.maxDeliver=1", "strategy.maxSurge=-1", "resources.request.cpu=1",
            "networkPolicy.nats.port=99999", "sizes.small.jobs=0", "externalSecret.store.kind=Vault",
        ]
        for setting in nonsense:
            with self.subTest(setting), self.assertRaises(ValueError):
                checks.render(settings=[setting])

    def test_by_the_schemas_of_kubernetes_and_the_operators(self):
        def misspell(document):
            document["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}

        def unknown_trigger(document):
            document["spec"]["triggers"][0]["metadata"]["lagTreshold"] = "5"

        def number(document):
            document["spec"]["pollingInterval"] = "often"

        problems = checks.schema_problems({
            "one": mutated(self.prod, "Deployment", misspell),
            "two": mutated(self.prod, "ScaledObject", unknown_trigger),
            "three": mutated(self.prod, "ScaledObject", number),
            "four": mutated(self.prod, "PrometheusRule", lambda d: d["spec"]["groups"][0]["rules"][0].update(expr="sum(")),
            "five": mutated(self.prod, "ExternalSecret", lambda d: d["spec"]["target"].update(creationPolicy="Perhaps")),
        })
        for words in ("readynessProbe", "lagTreshold", "pollingInterval", "promtool", "creationPolicy"):
            self.assert_found(problems, words)

    def test_by_the_restricted_standard(self):
        def pod(change):
            return lambda document: change(document["spec"]["template"]["spec"])

        def container(**more):
            return pod(lambda spec: spec["containers"][0]["securityContext"].update(more))
        for change, words in [
            (container(runAsNonRoot=False), "may run as root"),
            (container(allowPrivilegeEscalation=True), "may gain privileges"),
            (container(capabilities={"drop": ["NET_RAW"]}), "keeps capabilities"),
            (container(readOnlyRootFilesystem=False), "can write its root file system"),
            (container(seccompProfile={"type": "Unconfined"}), "has no seccomp profile"),
            (pod(lambda spec: spec.update(hostNetwork=True)), "shares the host's namespaces"),
            (pod(lambda spec: spec.update(automountServiceAccountToken=True)), "mounts the account's token"),
            (pod(lambda spec: spec["volumes"].append({"name": "x", "hostPath": {"path": "/"}})), "has a forbidden volume"),
            (pod(lambda spec: spec["containers"][0].update(resources={})), "has no requests or memory limit"),
        ]:
            self.assert_found(checks.restricted(mutated(self.prod, "Deployment", change)), words)

    def test_by_the_settings(self):
        def spec(change):
            return lambda document: change(document["spec"]["template"]["spec"])
        self.assert_found(checks.settings_problems(checks.render(settings=["config.NATS_ULR=nats://x:4222"])), "NATS_ULR is no setting")
        self.assert_found(checks.settings_problems(mutated(
            self.prod, "Deployment", spec(lambda pod: pod.update(terminationGracePeriodSeconds=60)))), "kills the pod")
        self.assert_found(checks.settings_problems(mutated(self.prod, "Deployment", spec(
            lambda pod: pod["containers"][0]["lifecycle"]["preStop"]["exec"].update(command=["x", "drain"])))), "preStop")

    def test_by_the_program(self):
        for setting, words in [("config.LOG_LEVEL=shout", "LOG_LEVEL"), ("config.DRAGONFLY_PORT=0", "DRAGONFLY_PORT"),
                               ("nats.ackWaitSeconds=4", "ACK_WAIT")]:
            documents = checks.render([checks.CHART / "values-prod.yaml"], [setting])
            self.assert_found(checks.refused_settings(documents), words)

    def test_by_the_references(self):
        self.assert_found(checks.reference_problems(mutated(
            self.prod, "Service", lambda d: d["spec"]["selector"].update(x="y"))), "Service/agent-executor selects nothing")
        self.assert_found(checks.reference_problems(mutated(
            self.prod, "ScaledObject", lambda d: d["spec"]["scaleTargetRef"].update(name="other"))), "scales other")
        self.assert_found(checks.reference_problems(mutated(
            self.prod, "ScaledObject", lambda d: d["spec"]["triggers"][0]["metadata"].update(consumer="x"))), "KEDA looks at consumer x")
        self.assert_found(checks.reference_problems(mutated(
            self.prod, "Deployment", lambda d: d["spec"].update(replicas=3))), "both set the number of pods")

    def test_by_the_network(self):
        self.assert_found(checks.network_problems(checks.render(settings=["networkPolicy.enabled=false"])), "no NetworkPolicy")
        closed = checks.render(settings=["networkPolicy.postgres.port=1"])
        self.assert_found(checks.network_problems(closed), "no way out to port 5432")
        undenied = [document for document in self.prod if not document["metadata"]["name"].endswith("-deny")]
        self.assert_found(checks.network_problems(undenied), "nothing denies")


if __name__ == "__main__":
    unittest.main()
