"""crossplane/: both forms against the schemas of Crossplane and of everything they compose; and planted mistakes."""
import copy
import re
import sys
import unittest

import yaml

import checks

FOLDER = checks.ROOT / "crossplane"
# The definition of claims is deprecated in 2.x and still served; crossplane/README.md says so.
DEPRECATED = "apiextensions.crossplane.io/v1 is deprecated"


def loaded(version):
    files = [*sorted((FOLDER / version).rglob("*.yaml")), FOLDER / "prerequisites.yaml"]
    return {path.stem: list(yaml.safe_load_all(path.read_text())) for path in files}


def manifests(documents):
    """What provider-kubernetes is told to make, by the resource's name."""
    for document in documents:
        if document["kind"] == "Composition":
            for resource in document["spec"]["pipeline"][0]["input"]["resources"]:
                yield resource, resource["base"]["spec"]["forProvider"]["manifest"]


def problems_of(documents, crossplane):
    return [problem for problem in checks.schema_problems(documents, crossplane) if DEPRECATED not in problem]


def has_path(value, path):
    """Whether a patch's target is there or may be made: every object and list on the way to its last part."""
    parts = re.findall(r"\[[^\]]*\]|[^.\[]+", path)
    for part in parts[:-1]:
        if part.startswith("["):
            index = part.strip("[]")
            value = value[int(index)] if index.isdigit() and isinstance(value, list) and int(index) < len(value) else (
                value.get(index) if isinstance(value, dict) else None)
        else:
            value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            return False
    return True


def patch_problems(documents, schema):
    """Patches from fields the definition does not have, or into nothing."""
    problems = []
    for resource, _ in manifests(documents):
        for patch in resource["patches"]:
            source, target = patch["fromFieldPath"], patch["toFieldPath"]
            if source.startswith("spec.") and not source.startswith("spec.claimRef."):
                field = schema
                for part in source.split(".")[1:]:
                    field = field.get("properties", {}).get(part)
                    if field is None:
                        problems.append(f"{resource['name']}: the definition has no {source}")
                        break
            if not has_path(resource["base"], target) and not target.endswith(("metadata.name", "metadata.namespace")):
                problems.append(f"{resource['name']}: {target} leads into nothing")
    return problems


def all_patch_problems(files):
    problems = []
    for documents in files.values():
        definitions = [document for document in documents if document["kind"] == "CompositeResourceDefinition"]
        if definitions:
            schema = definitions[0]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
            problems += patch_problems(documents, schema)
    return problems


class Crossplane(unittest.TestCase):
    def test_files_are_what_the_program_makes(self):
        code, output = checks.run(sys.executable, FOLDER / "compositions.py", "--check")
        self.assertEqual(code, 0, output)

    def test_claims_are_served_by_1_20_and_by_2(self):
        self.assertEqual(problems_of(loaded("v1"), "1.20"), [])
        self.assertEqual(problems_of(loaded("v1"), "2"), [])

    def test_namespaced_composites_are_served_by_2(self):
        self.assertEqual(checks.schema_problems(loaded("v2")), [])

    def test_patches_lead_from_fields_to_fields(self):
        for version in ("v1", "v2"):
            self.assertEqual(all_patch_problems(loaded(version)), [], version)

    def test_connection_secrets_have_the_keys_of_our_settings(self):
        known = checks.known_settings()
        wanted = {"cluster": {"POSTGRES_HOST", "POSTGRES_PORT", "POSTGRES_DB", "POSTGRES_USER", "POSTGRES_PASSWORD"},
                  "dragonfly": {"DRAGONFLY_HOST", "DRAGONFLY_PORT", "DRAGONFLY_PASSWORD"}}
        for version in ("v1", "v2"):
            for documents in loaded(version).values():
                for resource, _ in manifests(documents):
                    keys = {detail["name"] for detail in resource.get("connectionDetails", [])}
                    self.assertEqual(keys, wanted.get(resource["name"], set()), (version, resource["name"]))
                    self.assertTrue(all(known.fullmatch(key) for key in keys), keys)

    def test_the_pods_satisfy_the_restricted_standard(self):
        for version in ("v1", "v2"):
            composed = [{**manifest, "metadata": {"name": resource["name"]}} for resource, manifest
                        in manifests(loaded(version)["eventdrivenservice"])]
            self.assertEqual(checks.restricted(composed), [], version)
            self.assertEqual(len(list(checks.pod_specs(composed))), 1)

    def test_the_service_gets_settings_that_exist(self):
        known = checks.known_settings()
        deployment = next(manifest for _, manifest in manifests(loaded("v1")["eventdrivenservice"]) if manifest["kind"] == "Deployment")
        spec = deployment["spec"]["template"]["spec"]
        environment = {entry["name"]: entry.get("value") for entry in spec["containers"][0]["env"]}
        self.assertEqual([name for name in environment if not known.fullmatch(name)], [])
        self.assertGreater(spec["terminationGracePeriodSeconds"], int(environment["SHUTDOWN_GRACE_SECONDS"]))

    def test_sizes_are_those_of_the_chart(self):
        sizes = yaml.safe_load((checks.CHART / "values.yaml").read_text())["sizes"]
        for documents in loaded("v1").values():
            for resource, _ in manifests(documents):
                for patch in resource["patches"]:
                    if patch["fromFieldPath"] == "spec.size" and patch["toFieldPath"].endswith((".cpu", ".memory")):
                        field = patch["toFieldPath"].rpartition(".")[2]
                        self.assertEqual(patch["transforms"][0]["map"], {name: size[field] for name, size in sizes.items()})

    def test_a_pod_takes_as_much_as_one_of_the_chart_of_its_size(self):
        fields = {"MAX_CONCURRENT_JOBS": "jobs", "MAX_BYTES_IN_FLIGHT": "bytesInFlight",
                  "POSTGRES_MAX_CONNECTIONS": "databaseConnections"}
        sizes = yaml.safe_load((checks.CHART / "values.yaml").read_text())["sizes"]
        resource, deployment = next(pair for pair in manifests(loaded("v2")["eventdrivenservice"]) if pair[1]["kind"] == "Deployment")
        for at, entry in enumerate(deployment["spec"]["template"]["spec"]["containers"][0]["env"]):
            if field := fields.pop(entry["name"], None):
                maps = [patch["transforms"][0]["map"] for patch in resource["patches"]
                        if patch["toFieldPath"].endswith(f"containers[0].env[{at}].value")]
                self.assertEqual(maps, [{name: str(size[field]) for name, size in sizes.items()}], entry["name"])
        self.assertEqual(fields, {})

    def test_it_scales_as_the_chart_does(self):
        scaled = next(manifest for _, manifest in manifests(loaded("v1")["eventdrivenservice"]) if manifest["kind"] == "ScaledObject")
        chart = checks.of_kind(checks.render([checks.CHART / "values-prod.yaml"]), "ScaledObject")[0]
        for field in ("advanced", "pollingInterval", "cooldownPeriod", "minReplicaCount", "maxReplicaCount"):
            self.assertEqual(scaled["spec"][field], chart["spec"][field], field)

    def test_who_applies_the_definitions_asks_for_no_database(self):
        for version in ("v1", "v2"):
            for path in (FOLDER / version).glob("*.yaml"):
                kinds = {document["kind"] for document in yaml.safe_load_all(path.read_text())}
                self.assertEqual(kinds, {"CompositeResourceDefinition", "Composition"}, path)


class APlantedMistakeIsFound(unittest.TestCase):
    def assert_found(self, change, words, version="v1"):
        files = copy.deepcopy(loaded(version))
        change(files)
        problems = problems_of(files, "2") + all_patch_problems(files)
        self.assertTrue(any(words in problem for problem in problems), (words, problems))

    def test_in_a_claim(self):
        self.assert_found(lambda files: files["claims"][0]["spec"].update(size="huge"), "'huge' is not one of")
        self.assert_found(lambda files: files["claims"][0]["spec"].update(storageGB="many"), "storageGB", "v2")

    def test_in_a_composition(self):
        def resources(files):
            return files["postgresinstance"][1]["spec"]["pipeline"][0]["input"]["resources"]

        def patches(files):
            return resources(files)[0]["patches"]
        self.assert_found(lambda files: resources(files)[0]["base"]["spec"]["forProvider"]["manifest"]["spec"].update(instance=1), "instance")
        self.assert_found(lambda files: patches(files)[1].update(fromFieldPath="spec.storageGb"), "no spec.storageGb")
        self.assert_found(lambda files: patches(files)[1].update(toFieldPath="spec.nothing.at.all"), "leads into nothing")
        self.assert_found(lambda files: files["postgresinstance"][1]["spec"].update(mode="Resources"), "mode")

    def test_in_a_form_that_a_version_does_not_serve(self):
        problems = checks.schema_problems({"planted": [yaml.safe_load(
            "{apiVersion: apiextensions.crossplane.io/v1beta1, kind: CompositeResourceDefinition, metadata: {name: x}, spec: {}}")]})
        self.assertTrue(any("no schema" in problem or "not served" in problem for problem in problems), problems)


if __name__ == "__main__":
    unittest.main()
