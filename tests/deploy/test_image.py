"""The image: built from the Dockerfile, looked at, run; and each check against a planted mistake."""
import json
import pathlib
import shutil
import socket
import unittest

import checks
import image


DOCKERFILE = (checks.ROOT / "Dockerfile").read_text()
CHART = (checks.CHART / "Chart.yaml").read_text()
CARGO = (checks.ROOT / "Cargo.toml").read_text()


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Image(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(image.scratch())
        cls.addClassCleanup(shutil.rmtree, cls.folder, True)
        cls.builder = image.Builder(cls.folder)
        cls.image = cls.builder.build()
        cls.root = cls.builder.unpack(cls.image)

    def test_dockerfile_is_linted(self):
        self.assertEqual(checks.dockerfile_problems(), [])

    def test_versions_are_the_same_everywhere(self):
        self.assertEqual(image.version_problems(DOCKERFILE, CHART, CARGO), [])

    def test_the_layer_of_the_dependencies_is_a_package(self):
        folder = self.folder / "layer"
        folder.mkdir()
        self.assertEqual(image.layer_problems(DOCKERFILE, folder), [])

    def test_the_build_has_every_file_that_is_compiled_in(self):
        self.assertEqual(image.outside_problems(DOCKERFILE), [])

    def test_it_holds_the_program_and_no_shell(self):
        self.assertEqual(image.content_problems(self.root, image.LARGEST[image.profile()]), [])

    def test_it_says_how_it_runs(self):
        self.assertEqual(image.config_problems(self.builder.config(self.image)), [])

    def test_the_same_program_makes_the_same_image(self):
        self.assertEqual(self.builder.layers(self.builder.build()), self.builder.layers(self.image))

    def test_scripts_are_refused_by_name(self):
        root = self.builder.unpack(self.image, "scripts")
        for name, answer in script_answers(root, {}).items():
            self.assertIn("TOOL_SANDBOX", answer, name)

    def test_it_starts_answers_its_probe_and_ends_when_told(self):
        port = str(free_port())
        # Nobody listens on port 1: it lives, and is not ready.
        environment = {"PORT": port, "LISTEN_ADDRESS": "127.0.0.1", "NATS_URL": "nats://127.0.0.1:1",
                       "DATABASE_URL": "postgres://x@127.0.0.1:1/x", "DRAGONFLY_URL": "redis://127.0.0.1:1"}
        program = "/usr/local/bin/agent-executor"
        with image.running(self.folder / "bundle", environment) as (inside, process):
            image.until("the probe says that it lives", 60, lambda: inside(program, "probe"))
            code, output = inside(program, "probe", "--ready")
            self.assertEqual(code, 1, output)
            self.assertIn("503", output)
            status = pathlib.Path(f"/proc/{children(process.pid)[0]}/status").read_text()
            self.assertIn("Uid:\t65532\t65532\t65532\t65532", status)
            self.assertIn("CapEff:\t0000000000000000", status)
            self.assertIn("NoNewPrivs:\t1", status)
            mounts = pathlib.Path(f"/proc/{children(process.pid)[0]}/mounts").read_text().splitlines()
            root = [line.split() for line in mounts if line.split()[1] == "/"]
            self.assertIn("ro", root[-1][3].split(","))
            self.assertNotEqual(inside("/bin/sh", "-c", "true")[0], 0)
            inside(program, "drain", "--timeout", "30")
            process.wait(timeout=30)


class ImageWithScripts(unittest.TestCase):
    """The stage `with-scripts`, on this machine's Python."""

    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(image.scratch())
        cls.addClassCleanup(shutil.rmtree, cls.folder, True)
        cls.builder = image.Builder(cls.folder)
        cls.image = cls.builder.build_with_scripts()
        cls.root = cls.builder.unpack(cls.image)

    def test_it_says_how_it_runs(self):
        config = self.builder.config(self.image)
        self.assertEqual(image.config_problems(config), [])
        self.assertIn("PYTHON_TOOLS=enabled", config["Env"])

    def test_scripts_run_in_a_pod_that_is_a_sandbox_itself(self):
        self.assertEqual(script_answers(self.root, {"SCRIPT_TOOL_SANDBOX": "limits"}), DONE)

    def test_a_strict_sandbox_needs_a_proc_that_nothing_hides(self):
        strict = {"SCRIPT_TOOL_SANDBOX": "strict"}
        self.assertEqual(script_answers(self.root, strict, proc={}), DONE)
        for name, answer in script_answers(self.root, strict).items():
            self.assertIn("TOOL_SANDBOX", answer, name)


# What the tools of the example answer.
DONE = {"book": "1 items are booked", "vat": '{"net":200,"gross":238}'}


def script_answers(root, environment, proc=image.MASKED):
    """What the tools of graph-definitions/script-tools.json answer in a container, by name."""
    shutil.copy(checks.ROOT / "graph-definitions/script-tools.json", root / "tools.json")
    command = ["run", "/tools.json", "--input", "Book four chairs.", "--db", ":memory:", "--json"]
    code, output, errors = image.once(root.parent, command, {"PYTHON_TOOLS": "enabled", **environment}, proc)
    if code:
        raise AssertionError(f"exit code {code}: {errors}")
    events = [json.loads(line) for line in output.splitlines()]
    return {event["data"]["tool_name"]: event["data"]["tool_output"] for event in events
            if event.get("event_type") == "on_tool_end"}


def children(pid):
    return pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split() or [
        child for task in pathlib.Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


class APlantedMistakeIsFound(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(image.scratch())
        self.addCleanup(shutil.rmtree, self.folder, True)

    def test_in_the_dockerfile(self):
        path = self.folder / "Dockerfile"
        path.write_text("FROM debian:latest\nRUN cd /tmp && apt-get install curl\n")
        problems = "".join(checks.dockerfile_problems(path))
        self.assertIn("DL3007", problems)
        self.assertIn("DL3008", problems)

    def test_in_a_version(self):
        for old, new, words in [("VERSION=0", "VERSION=1", "labels version"), ("slim-bookworm", "slim-trixie", "different Debians"),
                                ("rust:1.", "rust:2.", "Cargo.toml wants")]:
            problems = image.version_problems(DOCKERFILE.replace(old, new), CHART, CARGO)
            self.assertTrue(any(words in problem for problem in problems), (words, problems))
        self.assertEqual(len(image.version_problems(DOCKERFILE, CHART.replace("ersion: 0", "ersion: 1"), CARGO)), 2)

    def test_in_the_layer_of_the_dependencies(self):
        problems = image.layer_problems(DOCKERFILE.replace("touch src/lib.rs", "true"), self.folder)
        self.assertTrue(any("library" in problem for problem in problems), problems)
        self.assertNotEqual(image.outside_problems(DOCKERFILE.replace("COPY src src", "COPY source src")), [])

    def test_in_the_content(self):
        root = image.Builder(self.folder).rootfs() / "rootfs"
        self.assertEqual(image.content_problems(root, image.LARGEST[image.profile()]), [])
        (root / "bin").mkdir()
        shutil.copy("/bin/sh", root / "bin/sh")
        (root / "etc/passwd").unlink()
        problems = image.content_problems(root, image.MEGABYTE)
        self.assertIn("the image holds sh", problems)
        self.assertIn("the image has no /etc/passwd", problems)
        self.assertTrue(any("more than 1" in problem for problem in problems), problems)

    def test_in_the_configuration(self):
        path = self.folder / "Dockerfile"
        text = (checks.ROOT / "Dockerfile").read_text()
        path.write_text(text.replace("USER 65532:65532", "USER root").replace('"probe"]', '"drain"]'))
        builder = image.Builder(self.folder)
        problems = image.config_problems(builder.config(builder.build(path)))
        self.assertTrue(any("User is root" in problem for problem in problems), problems)
        self.assertTrue(any("health check" in problem for problem in problems), problems)

    def test_in_a_program_that_cannot_start(self):
        builder = image.Builder(self.folder)
        root = builder.unpack(builder.build())
        library = next(root.rglob("libc.so.6"))
        library.unlink()
        with image.running(root.parent, {}) as (inside, process):
            process.wait(timeout=60)
        self.assertNotEqual(process.returncode, 0)


if __name__ == "__main__":
    unittest.main()
