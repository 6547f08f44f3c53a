"""Documents: links lead somewhere, commands and settings exist, every error code has a page; and planted mistakes."""
import os
import pathlib
import re
import tempfile
import unittest

import checks

BINARY = os.environ["AGENT_EXECUTOR"]
PAGES = [*sorted((checks.ROOT / "docs").rglob("*.md")), *(checks.ROOT / name for name in (
    "README.md", "TROUBLESHOOTING.md", "ARCHITECTURE.md", "CHANGELOG.md", "keda/README.md", "crossplane/README.md"))]
PLAYBOOKS = checks.ROOT / "docs/playbooks.md"
INCIDENTS = ["Stuck queue", "LLM errors", "Postgres", "Redis", "NATS", "Deployment failure", "Poison messages", "Stuck thread"]


def incident_problems(text):
    """Incidents without a command of ours or without the metric to look at."""
    pages = dict(re.findall(r"^### (.+?)\n(.*?)(?=^##|\Z)", text, re.S | re.M))
    problems = [f"no page for {name}" for name in INCIDENTS if name not in pages]
    for name in INCIDENTS:
        page = pages.get(name, "")
        if not re.search(r"agent-executor (doctor|dlq|cancel|tail|probe|config|drain)", page):
            problems.append(f"{name}: no command of ours")
        if not re.search(r"agent_executor_\w+", page):
            problems.append(f"{name}: no metric")
        if "**Over** when" not in page:
            problems.append(f"{name}: nobody knows when it is over")
    return problems


def metric_name_problems(text):
    known = checks.exported_metrics()
    named = set(re.findall(r"agent_executor_\w+", text)) - {"agent_executor_"}
    return [name for name in sorted(named) if name not in known and re.sub(r"_(bucket|count|sum)$", "", name) not in known]


class Documents(unittest.TestCase):
    def test_links_lead_somewhere(self):
        self.assertEqual(checks.link_problems(PAGES), [])

    def test_commands_exist(self):
        self.assertEqual(checks.command_problems(PAGES, BINARY), [])

    def test_every_incident_has_a_command_a_metric_and_an_end(self):
        self.assertEqual(incident_problems(PLAYBOOKS.read_text()), [])

    def test_metrics_and_settings_exist(self):
        for page in PAGES:
            self.assertEqual(metric_name_problems(page.read_text()), [], page.name)
            self.assertEqual(checks.capital_problems(page.read_text()), [], page.name)

    def test_values_of_the_chart_exist(self):
        for page in (checks.ROOT / name for name in ("docs/operations.md", "docs/playbooks.md", "keda/README.md")):
            self.assertEqual(checks.value_problems(page.read_text()), [], page.name)

    def test_the_scaling_table_is_the_formula(self):
        text = (checks.ROOT / "docs/operations.md").read_text()
        for jobs, pods in ((5, 1), (6, 2), (10, 2), (25, 5), (46, 10), (50, 10)):
            self.assertEqual(min(10, max(1, -(-jobs // 5))), pods)
        for row in ("| 0 to 5 | 1 |", "| 6 to 10 | 2 |", "| 25 | 5 |", "| 46 and more | 10 |"):
            self.assertIn(row, text)

    def test_the_sizes_are_those_of_the_chart(self):
        text = (checks.ROOT / "docs/operations.md").read_text()
        for name, size in checks.yaml.safe_load((checks.CHART / "values.yaml").read_text())["sizes"].items():
            row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` | {size['cpu']},"))
            for value in (size["cpuLimit"], size["memory"], str(size["jobs"]), f"{size['databaseConnections']} + 2",
                          f"| {size['jobs'] * 2:,} |"):
                self.assertIn(value, row)


class APlantedMistakeIsFound(unittest.TestCase):
    def page(self, text):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = pathlib.Path(folder.name).resolve() / "page.md"
        path.write_text(text)
        return path

    def test_in_a_link(self):
        path = self.page("# A title\n\n[one](#a-title) [two](#other) [three](nowhere.md) [four](https://example.com)\n")
        problems = checks.link_problems([path], path.parent)
        self.assertEqual(problems, ["page.md: #other names no heading", "page.md: nowhere.md is not there"])

    def test_in_a_command(self):
        path = self.page("# T\n\n    agent-executor doctor --mend\n    agent-executor tail | cat\n\n"
                         "Do `agent-executor repair` and `agent-executor doctor --repair`, then `agent-executor dlq replay`.\n\n"
                         "```\nagent-executor dlq \\\n    show first\n```\n")
        problems = checks.command_problems([path], BINARY, path.parent)
        self.assertEqual(len(problems), 4, problems)
        for problem, words in zip(problems, ("--mend", "required", "'repair'", "'first'"), strict=True):
            self.assertIn(words, problem)

    def test_in_a_playbook(self):
        text = PLAYBOOKS.read_text().replace("### Poison messages", "### Poison").replace("**Over** when", "Over when", 1)
        self.assertIn("no page for Poison messages", incident_problems(text))
        self.assertIn("Stuck queue: nobody knows when it is over", incident_problems(text))

    def test_in_a_name(self):
        self.assertEqual(metric_name_problems("`agent_executor_jobz_total`, `agent_executor_jobs_total`"), ["agent_executor_jobz_total"])
        text = "Set `NATS_CONSUMMER`, `NATS_CONSUMER` or `MODEL_PROVIDER_X_API_KEY`; see `STORE_BROKEN` and `STORE_CORRUPT`."
        self.assertEqual(checks.capital_problems(text), [f"{name} is neither a setting nor an error code"
                                                         for name in ("NATS_CONSUMMER", "STORE_BROKEN")])
        text = "Raise `keda.maxPods` or `keda.maxReplicas`.\n\n    helm upgrade x y --set nats.stream=A,nats.consumer=B\n"
        self.assertEqual(checks.value_problems(text), ["the chart has no keda.maxPods", "the chart has no nats.stream"])


if __name__ == "__main__":
    unittest.main()
