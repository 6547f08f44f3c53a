"""scripts/check-deploy.sh: a tool that is not the pinned one, or schemas that are missing, end it."""
import os
import pathlib
import shutil
import stat
import subprocess
import tempfile
import unittest

import checks

SCRIPT = checks.ROOT / "scripts/check-deploy.sh"


class Tools(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="agent-executor-tools-"))
        self.addCleanup(shutil.rmtree, self.folder, True)
        (self.folder / "bin").mkdir()

    def stand_in(self, name, lines):
        path = self.folder / "bin" / name
        path.write_text("#!/bin/sh\n" + lines)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def run_script(self, **more):
        environment = {**os.environ, "CARGO_TARGET_DIR": str(self.folder / "target"),
                       "PATH": f"{self.folder}/bin:{os.environ['PATH']}", **more}
        done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout + done.stderr

    def test_another_helm_is_refused(self):
        self.stand_in("npm", "mkdir -p package/bin && echo other > package/bin/helm && tar -czf helm.tgz package\n")
        code, output = self.run_script()
        self.assertEqual(code, 1, output)
        self.assertIn("is not what was pinned", output)

    def test_a_registry_that_is_away_is_tried_again_and_then_told(self):
        self.stand_in("npm", f"echo asked >> {self.folder}/asked; exit 1\n")
        self.stand_in("sleep", "")
        code, output = self.run_script()
        self.assertEqual(code, 1, output)
        self.assertIn("npm cannot get", output)
        self.assertEqual((self.folder / "asked").read_text().count("asked"), 3)

    def test_missing_schemas_are_told(self):
        tools = self.folder / "target/deploy-tools"
        tools.mkdir(parents=True)
        for name in ("helm", "promtool", "python"):
            (tools / name).symlink_to(checks.TOOLS / name)
        code, output = self.run_script(K8S_SCHEMAS=str(self.folder / "nowhere"))
        self.assertEqual(code, 1, output)
        self.assertIn("no schemas at", output)

    def test_python_packages_are_pinned_by_hash(self):
        lines = (checks.ROOT / "tests/deploy/requirements.txt").read_text().replace("\\\n", " ").splitlines()
        packages = [line for line in lines if line and not line.startswith("#")]
        self.assertGreater(len(packages), 5)
        for line in packages:
            self.assertRegex(line, r"^[A-Za-z0-9_.-]+==[^ ]+ .*--hash=sha256:[0-9a-f]{64}")


if __name__ == "__main__":
    unittest.main()
