"""Alerts and dashboards: they parse, are tested, name metrics that exist; and the checks against planted mistakes."""
import copy
import pathlib
import subprocess
import sys
import tempfile
import unittest

import checks

PLAYBOOKS = (checks.ROOT / "docs/playbooks.md").read_text()


class Alerts(unittest.TestCase):
    def test_each_is_shown_to_fire_and_not_to_fire(self):
        self.assertEqual(checks.alert_test_problems(), [])

    def test_each_names_metrics_that_exist(self):
        self.assertEqual(checks.metric_problems(checks.alert_expressions(checks.alerts())), [])

    def test_each_has_a_runbook(self):
        self.assertEqual(checks.runbook_problems(checks.alerts(), PLAYBOOKS), [])

    def test_the_chart_puts_the_address_of_the_runbooks_in(self):
        rule = checks.of_kind(checks.render([checks.CHART / "values-prod.yaml"]), "PrometheusRule")[0]
        rules = [rule for group in rule["spec"]["groups"] for rule in group["rules"]]
        self.assertEqual(len(rules), len(checks.alerts()))
        for rule in rules:
            self.assertTrue(rule["annotations"]["runbook_url"].startswith("https://"), rule)


class Dashboards(unittest.TestCase):
    def test_they_are_what_the_program_makes(self):
        code, output = checks.run(sys.executable, checks.ROOT / "observability/dashboards.py", "--check")
        self.assertEqual(code, 0, output)

    def test_every_expression_parses(self):
        self.assertEqual(checks.parse_problems(checks.dashboard_expressions()), [])

    def test_every_metric_exists(self):
        self.assertEqual(checks.metric_problems(checks.dashboard_expressions()), [])

    def test_every_metric_of_ours_is_on_a_panel(self):
        expressions = " ".join(expression for _, expression in checks.dashboard_expressions())
        self.assertEqual([name for name in sorted(checks.exported_metrics()) if name not in expressions], [])

    def test_the_chart_ships_them(self):
        documents = checks.render([checks.CHART / "values-prod.yaml"])
        shipped = {name for document in checks.of_kind(documents, "ConfigMap") for name in document["data"]}
        self.assertLessEqual({path.name for path in (checks.CHART / "dashboards").glob("*.json")}, shipped)


class APlantedMistakeIsFound(unittest.TestCase):
    def test_in_a_rule(self):
        problems = self.alert_problems(lambda text: text.replace("> 0.05", "> 0.5"))
        self.assertIn("AgentExecutorErrorRate fires", problems)
        problems = self.alert_problems(lambda text: text.replace("> 0.05", "> -1"))
        self.assertIn("AgentExecutorErrorRate does not fire", problems)
        self.assertIn("parse error", self.alert_problems(lambda text: text.replace("sum(rate(", "sum(rate((", 1)))

    def test_in_an_alert_without_a_test(self):
        problems = self.alert_problems(lambda text: text.replace("alert: AgentExecutorDown", "alert: AgentExecutorGone"))
        self.assertIn("AgentExecutorGone is never shown to fire", problems)
        self.assertIn("AgentExecutorGone is never shown not to fire", problems)

    def alert_problems(self, change):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "alerts.yaml"
            path.write_text(change((checks.CHART / "alerts/alerts.yaml").read_text()))
            return "\n".join(checks.alert_test_problems(path))

    def test_in_the_name_of_a_metric(self):
        planted = [("x", 'sum by (code) (rate(agent_executor_jobz_total{status="failed"}[5m]))')]
        self.assertEqual(checks.metric_problems(planted), ["x: nothing exports agent_executor_jobz_total"])
        self.assertEqual(checks.metric_problems([("x", "nats_consumer_num_pending > 1")]),
                         ["x: nothing exports nats_consumer_num_pending"])

    def test_in_an_expression(self):
        self.assertNotEqual(checks.parse_problems([("x", "sum(rate(agent_executor_jobs_total[5m])")]), [])

    def test_in_a_runbook(self):
        rules = copy.deepcopy(checks.alerts())
        rules[0]["annotations"]["runbook_url"] += "x"
        self.assertEqual(len(checks.runbook_problems(rules, PLAYBOOKS)), 1)

    def test_in_a_dashboard(self):
        sys.path.insert(0, str(checks.ROOT / "observability"))
        self.addCleanup(sys.path.remove, str(checks.ROOT / "observability"))
        import dashboards
        with tempfile.TemporaryDirectory() as folder:
            dashboards_folder = pathlib.Path(folder) / "charts/agent-executor/dashboards"
            dashboards_folder.mkdir(parents=True)
            for name, text in dashboards.rendered().items():
                (dashboards_folder / name).write_text(text)
            (dashboards_folder / "tools.json").write_text("{}")
            script = pathlib.Path(folder) / "observability/dashboards.py"
            script.parent.mkdir()
            script.write_text((checks.ROOT / "observability/dashboards.py").read_text())
            done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn("tools.json", done.stderr)


if __name__ == "__main__":
    unittest.main()
