"""keda/: the objects for clusters without the chart are those that the chart makes."""
import unittest

import yaml

import checks

FOLDER = checks.ROOT / "keda"


def loaded(name):
    return yaml.safe_load((FOLDER / name).read_text())


def of_chart(*settings, files=("values-prod.yaml",)):
    return checks.of_kind(checks.render([checks.CHART / name for name in files], settings), "ScaledObject")[0]["spec"]


class Keda(unittest.TestCase):
    def test_every_object_satisfies_the_schemas(self):
        self.assertEqual(checks.schema_problems({path.stem: [loaded(path.name)] for path in FOLDER.glob("*.yaml")}), [])

    def test_the_objects_are_those_of_the_chart(self):
        self.assertEqual(loaded("scaledobject.yaml")["spec"], of_chart())
        self.assertEqual(loaded("scaledobject-scale-to-zero.yaml")["spec"],
                         of_chart(files=("values-prod.yaml", "values-scale-to-zero.yaml")))
        both = of_chart("keda.inFlight.enabled=true", "keda.prometheusAuthSecret=prometheus-reader")
        self.assertEqual(loaded("scaledobject-in-flight.yaml")["spec"], both)

    def test_the_pods_use_the_stream_and_consumer_that_is_looked_at(self):
        documents = checks.render([checks.CHART / "values-prod.yaml"])
        for path in FOLDER.glob("scaledobject*.yaml"):
            self.assertEqual(checks.scaling_problems(loaded(path.name), documents), [])

    def test_the_threshold_is_five_or_a_tenth_of_the_jobs_of_a_pod(self):
        def threshold(*settings):
            return of_chart(*settings)["triggers"][0]["metadata"]["lagThreshold"]
        self.assertEqual(threshold(), "5")
        self.assertEqual(threshold("config.MAX_CONCURRENT_JOBS=200"), "20")
        self.assertEqual(threshold("config.MAX_CONCURRENT_JOBS=4"), "1")
        self.assertEqual(threshold("config.MAX_CONCURRENT_JOBS=200", "keda.lagThreshold=7"), "7")

    def test_a_planted_mistake_is_found(self):
        scaled = loaded("scaledobject.yaml")
        del scaled["spec"]["triggers"][0]["metadata"]["stream"]
        problems = checks.schema_problems({"planted": [scaled]})
        self.assertTrue(any("metadata.stream: required" in problem for problem in problems), problems)


if __name__ == "__main__":
    unittest.main()
