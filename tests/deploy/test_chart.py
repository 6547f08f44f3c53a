"""The chart: every values file against lint, schemas, pod security and itself; and each check against a planted mistake."""
import copy
import json
import os
import re
import shutil
import tempfile
import textwrap
import pathlib
import unittest

import checks


def shared_but_results(first, second):
    """What both make, but the streams that both are told to use."""
    common = ("Stream AGENT_RESULTS of NATS", "Stream AGENT_DLQ of NATS")
    return [problem for problem in checks.shared_problems(first, second) if not problem.endswith(common)]


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

    def test_takes_no_secret_where_everybody_reads_it(self):
        schema = json.loads((checks.CHART / "values.schema.json").read_text())
        self.assertEqual(checks.open_secrets(schema), [])
        self.assertLessEqual({"PG_PASSWORD", "VAULT_TOKEN", "SECRET_<NAME>", "MCP_SERVER_<NAME>_HEADERS"}, set(checks.secret_settings()))

    def test_refers_to_what_is_there(self):
        for name, documents in self.rendered.items():
            self.assertEqual(checks.reference_problems(documents), [], name)

    def test_prod_denies_all_traffic_but_the_neighbours(self):
        self.assertEqual(checks.network_problems(self.prod), [])

    def test_opens_a_way_to_every_address_it_names(self):
        # The others are parts of these.
        for name in ("nack", *(name for name in self.rendered if "prod" in name)):
            self.assertEqual(checks.way_problems(self.rendered[name]), [], name)

    def test_the_guides_example_of_a_network_opens_its_ways(self):
        text = (checks.ROOT / "docs/operations.md").read_text()
        example = next(block for block in re.findall(r"(?:^    .*\n)+", text, re.M) if "extraEgress:" in block)
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(textwrap.dedent(example))
            file.flush()
            documents = checks.render([checks.CHART / "values-prod.yaml", file.name])
        self.assertEqual(checks.way_problems(documents) + checks.schema_problems({"example": documents}), [])
        for policy in checks.of_kind(documents, "NetworkPolicy"):
            for rule in policy["spec"].get("egress", []):
                rule["ports"] = [port for port in rule["ports"] if port["port"] != 8000]
        self.assertEqual(checks.way_problems(documents), ["MODEL_PROVIDER_VLLM_BASE_URL: no way out to port 8000 of models"])

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

    def test_the_consumer_is_made_before_the_scaler_that_asks_for_it(self):
        def arguments(name):
            return checks.of_kind(self.rendered[name], "Job")[0]["spec"]["template"]["spec"]["containers"][0]["args"]
        self.assertEqual(arguments("values-prod"), ["migrate", "--queue"])
        # NACK makes it, in Helm's order of kinds: by name, those it does not know last.
        self.assertEqual(arguments("nack"), ["migrate"])
        self.assertLess("Consumer", "ScaledObject")

    def test_a_canary_and_a_green_release_leave_the_first_alone(self):
        for settings in ([], ["nats.provision=nack", "networkPolicy.kedaToNats.enabled=true"]):
            first = checks.render([checks.CHART / "values-prod.yaml"], settings)
            for name in ("canary", "green"):
                files = [checks.CHART / "values-prod.yaml", checks.CHART / f"values-{name}.yaml"]
                more = [setting for setting in settings if name == "green" or "provision" not in setting]
                second = checks.render(files, more, release=f"agent-executor-{name}")
                self.assertEqual(shared_but_results(first, second), [], name)
                self.assertEqual(checks.result_address_problems(first, second), [], name)

    def test_a_canary_works_on_the_queue_and_the_database_of_the_first(self):
        def settings(name):
            data = checks.of_kind(self.rendered[name], "ConfigMap")[0]["data"]
            return {key: data.get(key) for key in ("NATS_EXECUTION_STREAM", "NATS_CONSUMER", "POSTGRES_SCHEMA")}
        self.assertEqual(settings("prod-canary"), settings("values-prod"))
        self.assertNotIn(None, [settings("prod-green")[key] for key in settings("prod-green")])
        self.assertFalse(set(settings("prod-green").values()) & set(settings("values-prod").values()))

    def test_no_pod_is_no_alarm_where_none_is_normal(self):
        def alerts(name):
            rule = checks.of_kind(self.rendered[name], "PrometheusRule")[0]
            return {rule["alert"] for group in rule["spec"]["groups"] for rule in group["rules"]}
        self.assertEqual(alerts("values-prod"), {rule["alert"] for rule in checks.alerts()})
        self.assertEqual(alerts("values-prod") - alerts("prod-scale-to-zero"), {"AgentExecutorDown"})

    def test_keda_may_read_the_monitoring_of_nats_and_nobody_else(self):
        policy = next(policy for policy in checks.of_kind(self.rendered["nack"], "NetworkPolicy")
                      if policy["metadata"]["name"].endswith("-keda-to-nats"))
        self.assertEqual(policy["metadata"]["namespace"], "nats")
        self.assertEqual(policy["spec"]["ingress"], [{
            "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "keda"}}}],
            "ports": [{"protocol": "TCP", "port": 8222}]}])

    def test_scripts_run_in_a_sandboxed_runtime(self):
        spec = checks.of_kind(self.rendered["prod-scripts"], "Deployment")[0]["spec"]["template"]["spec"]
        self.assertEqual(spec["runtimeClassName"], "gvisor")
        self.assertTrue(spec["containers"][0]["image"].endswith("-scripts"))

    def test_a_token_for_vault_is_mounted_where_the_program_looks_for_it_and_only_where_it_is_asked_for(self):
        def spec(name):
            return checks.of_kind(self.rendered[name], "Deployment")[0]["spec"]["template"]["spec"]
        token = {"serviceAccountToken": {"path": "token", "audience": "vault", "expirationSeconds": 3600}}
        self.assertEqual([volume["projected"]["sources"] for volume in spec("prod-vault")["volumes"] if "projected" in volume], [[token]])
        self.assertFalse([volume for volume in spec("values-prod")["volumes"] if "projected" in volume])
        data = checks.of_kind(self.rendered["prod-vault"], "ConfigMap")[0]["data"]
        self.assertEqual((data["VAULT_ADDR"], data["VAULT_AUTH_ROLE"]),
                         ("http://vault.vault.svc.cluster.local:8200", "agent-executor"))

    def test_the_program_takes_the_request_of_helm_test(self):
        made = next(document for document in checks.of_kind(self.prod, "ConfigMap") if "request.json" in document["data"])
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            file.write(made["data"]["request.json"])
            file.flush()
            code, output = checks.run(os.environ["AGENT_EXECUTOR"], "validate", file.name)
        self.assertEqual(code, 0, output)

    def test_an_upgrade_deletes_nothing_that_holds_data(self):
        # Helm deletes the object of a hook before it makes it anew.
        for document in self.rendered["nack"]:
            is_hook = "upgrade" in document["metadata"].get("annotations", {}).get("helm.sh/hook", "")
            self.assertFalse(is_hook and document["kind"] in ("Stream", "Consumer", "ConfigMap", "Secret"), document["kind"])
            if document["kind"] == "ExternalSecret":
                self.assertEqual(document["spec"]["target"]["creationPolicy"], "Orphan")

    def test_numbers_stay_as_they_are_written(self):
        values = "config: { MAX_BYTES_IN_FLIGHT: 268435456, LEASE_SECONDS: 5, STREAM_CUMULATIVE_TEXT: true }"
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(values)
            file.flush()
            data = checks.of_kind(checks.render([file.name]), "ConfigMap")[0]["data"]
        self.assertEqual((data["MAX_BYTES_IN_FLIGHT"], data["LEASE_SECONDS"], data["STREAM_CUMULATIVE_TEXT"]),
                         ("268435456", "5", "true"))

    def test_limits_of_models_are_divided_among_the_most_pods_there_may_be(self):
        def parts(*settings, files=()):
            files = [checks.CHART / f"values-{name}.yaml" for name in files]
            return checks.of_kind(checks.render(files, settings), "ConfigMap")[0]["data"]["MODEL_LIMIT_PARTS"]
        self.assertEqual(parts("keda.enabled=true", "keda.maxReplicas=7"), "7")
        self.assertEqual(parts("keda.enabled=false", "replicas=3"), "3")
        self.assertEqual(parts("config.MODEL_LIMIT_PARTS=12"), "12")
        # Nobody runs, and still the migration reads the settings.
        self.assertEqual(parts("keda.enabled=false", "replicas=0"), "1")
        # While a second release runs, both share the limits.
        first = int(parts(files=["prod"]))
        self.assertEqual(parts(files=["prod", "canary"]), str(first + 1))
        self.assertEqual(parts(files=["prod", "green"]), str(2 * first))

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
            "config.VAULT_TOKEN=x", "config.SECRET_CRM=x", "config.HTTP_TOOL_SECRET_CRM=x", "config.MCP_SERVER_DOCS_HEADERS=x",
            "vault.role=executor", "vault.address=vault:8200", "vault.rolle=x",
        ]
        for setting in nonsense:
            with self.subTest(setting), self.assertRaises(ValueError):
                checks.render(settings=[setting])

    def test_in_what_the_schema_of_values_keeps_out(self):
        schema = json.loads((checks.CHART / "values.schema.json").read_text())
        kept_out = schema["properties"]["config"]["propertyNames"]["not"]["anyOf"]
        secrets = kept_out.pop()
        self.assertEqual(checks.open_secrets(schema), ["config takes HTTP_TOOL_SECRET_A_1", "config takes SECRET_A_1"])
        kept_out += [secrets, {"pattern": "^VAULT_"}]
        self.assert_found(checks.open_secrets(schema), "config does not take VAULT_ADDR")

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
        by_hand = ["config.VAULT_ADDR=http://vault:8200", "config.VAULT_AUTH_ROLE=executor"]
        self.assert_found(checks.settings_problems(checks.render(settings=by_hand)), "VAULT_JWT_FILE: no volume has /var/run")
        self.assert_found(checks.settings_problems(checks.render(settings=["config.NATS_CREDS_FILE=/etc/nats/creds"])),
                          "NATS_CREDS_FILE: no volume has")
        vault = checks.render([checks.CHART / "values-prod.yaml", checks.CHART / "values-vault.yaml"])
        self.assert_found(checks.settings_problems(mutated(vault, "Deployment", spec(
            lambda pod: pod["volumes"][-1]["projected"]["sources"][0]["serviceAccountToken"].update(path="jwt")))), "nobody makes the token")

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

    def test_in_a_second_release(self):
        second = checks.render([checks.CHART / "values-prod.yaml"], release="agent-executor-canary")
        problems = checks.shared_problems(self.prod, second)
        for words in ("Secret agent-executor", "alert AgentExecutorDown", "dashboard overview.json"):
            self.assert_found(problems, words)
        files = [checks.CHART / "values-prod.yaml", checks.CHART / "values-green.yaml"]
        blue = checks.of_kind(self.prod, "ConfigMap")[0]["data"]["PUBLIC_URL"]
        for release, address, words in (("agent-executor-green", blue, "leads to a release without its jobs"),
                                        ("other", "", "leads to no Service")):
            green = checks.render(files, [f"config.PUBLIC_URL={address}"] if address else [], release=release)
            self.assert_found(checks.result_address_problems(self.prod, green), words)

    def test_by_the_network(self):
        self.assert_found(checks.network_problems(checks.render(settings=["networkPolicy.enabled=false"])), "no NetworkPolicy")
        closed = checks.render(settings=["networkPolicy.postgres.port=1"])
        self.assert_found(checks.network_problems(closed), "no way out to port 5432")
        undenied = [document for document in self.prod if not document["metadata"]["name"].endswith("-deny")]
        self.assert_found(checks.network_problems(undenied), "nothing denies")
        for setting, words in [("networkPolicy.ingressFrom=null", "PUBLIC_URL: only Prometheus"),
                               ("config.K_SINK=http://sink.crm.svc:8080", "K_SINK: no way out to port 8080 of crm"),
                               ("config.K_SINK=http://sink", f"K_SINK: no way out to port 80 of {checks.NAMESPACE}"),
                               ("networkPolicy.nats.namespace=other", "NATS_URL: no way out to port 4222 of nats"),
                               ("networkPolicy.dragonfly.port=1", "DRAGONFLY_HOST: no way out to port 6379")]:
            documents = checks.render([checks.CHART / "values-prod.yaml"], [setting])
            self.assert_found(checks.way_problems(documents), words)


if __name__ == "__main__":
    unittest.main()
