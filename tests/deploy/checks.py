"""The checks of `make check-deploy`: each takes what it looks at and returns a list of problems, empty when all is well.

The tests beside this file run each check on the real files and on a planted mistake.
"""
import concurrent.futures
import functools
import itertools
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import tempfile
import urllib.parse

import jsonschema
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "charts/agent-executor"
TOOLS = pathlib.Path(os.environ.get("DEPLOY_TOOLS", ROOT / "target/deploy-tools"))
KUBERNETES = "1.32"
NAMESPACE = "intelligence-deepagents"


def run(*command, text=None, folder=None, timeout=300):
    """Exit code and everything the command said."""
    done = subprocess.run([str(part) for part in command], input=text, cwd=folder, capture_output=True, text=True,
                          timeout=timeout)
    return done.returncode, done.stdout + done.stderr


def complaint(code_and_output):
    code, output = code_and_output
    return [] if code == 0 else [output.strip() or f"exit code {code}"]


# ---------------------------------------------------------------- chart

def values_files():
    """Every combination that the chart's documents speak of, by name."""
    files = {path.stem: [path] for path in sorted(CHART.glob("values-*.yaml"))}
    prod = CHART / "values-prod.yaml"
    for size in ("micro", "small", "large"):
        files[f"prod-{size}"] = [prod, CHART / f"values-{size}.yaml"]
    files["prod-scale-to-zero"] = [prod, CHART / "values-scale-to-zero.yaml"]
    for name in ("green", "canary", "scripts", "vault"):
        files[f"prod-{name}"] = [prod, CHART / f"values-{name}.yaml"]
    files["defaults"] = []
    return files


def _flags(values, settings):
    flags = [part for path in values for part in ("--values", path)]
    return flags + [part for setting in settings for part in ("--set", setting)]


def lint(values=(), settings=(), chart=CHART):
    return complaint(run("helm", "lint", "--strict", chart, *_flags(values, settings)))


def render(values=(), settings=(), chart=CHART, release="agent-executor"):
    """The manifests; raises with helm's words when it refuses."""
    command = ["helm", "template", release, chart, "--namespace", NAMESPACE, "--kube-version", KUBERNETES,
               *map(str, _flags(values, settings))]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise ValueError(done.stderr.strip())
    return [document for document in yaml.safe_load_all(done.stdout) if document]


# KEDA documents this parameter of its Prometheus trigger; the list it generates of its parameters leaves out those of
# embedded structures.
KEDA_OMITS = re.compile(r"metadata\.authModes: not a prometheus parameter")


def schema_problems(documents_by_name, crossplane="2"):
    """What Kubernetes' and the operators' schemas say of documents, by the name of their file."""
    with tempfile.TemporaryDirectory() as folder:
        for name, documents in documents_by_name.items():
            (pathlib.Path(folder) / f"{name}.yaml").write_text(yaml.safe_dump_all(documents))
        code, output = run("python", TOOLS / "k8s/validate_k8s.py", "-k", KUBERNETES, "--crossplane", crossplane, folder)
    problems = [line for line in output.splitlines() if line.startswith(("ERROR", "WARN")) and not KEDA_OMITS.search(line)]
    if not problems and code and KEDA_OMITS.search(output):
        code = 0
    if code and not problems:
        return [output]
    count = re.search(r"^(\d+) documents", output, re.M)
    expected = sum(len(documents) for documents in documents_by_name.values())
    if not count or int(count[1]) != expected:
        return problems + [f"of {expected} documents {count and count[1]} were looked at"]
    return problems


def of_kind(documents, kind):
    return [document for document in documents if document["kind"] == kind]


def pod_specs(documents):
    """Where, and every pod specification."""
    for document in documents:
        where = f"{document['kind']}/{document['metadata']['name']}"
        if document["kind"] == "Pod":
            yield where, document["spec"]
        elif document["kind"] in ("Deployment", "Job", "StatefulSet", "DaemonSet"):
            yield where, document["spec"]["template"]["spec"]


# Volumes that the restricted pod security standard allows.
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def restricted(documents):
    """What the restricted pod security standard forbids, and what we ask for beyond it."""
    problems = []
    for where, spec in pod_specs(documents):
        pod = spec.get("securityContext", {})
        bad = {
            "shares the host's namespaces": any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")),
            "mounts the account's token": spec.get("automountServiceAccountToken") is not False,
            "has a forbidden volume": any(not VOLUMES & volume.keys() for volume in spec.get("volumes", [])),
            "sets sysctls": bool(pod.get("sysctls")),
            "runs as uid 0": pod.get("runAsUser") == 0,
        }
        containers = spec.get("containers", []) + spec.get("initContainers", [])
        for container in containers:
            own = container.get("securityContext", {})
            seccomp = own.get("seccompProfile", pod.get("seccompProfile", {})).get("type")
            capabilities = own.get("capabilities", {})
            resources = container.get("resources", {})
            bad |= {
                "may run as root": own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True,
                "may gain privileges": own.get("allowPrivilegeEscalation") is not False or own.get("privileged"),
                "keeps capabilities": capabilities.get("drop") != ["ALL"]
                or not set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
                "has no seccomp profile": seccomp not in ("RuntimeDefault", "Localhost"),
                "can write its root file system": own.get("readOnlyRootFilesystem") is not True,
                "has host ports": any(port.get("hostPort") for port in container.get("ports", [])),
                "has no requests or memory limit": not {"cpu", "memory"} <= resources.get("requests", {}).keys()
                or "memory" not in resources.get("limits", {}),
            }
        problems += [f"{where} {what}" for what, is_so in bad.items() if is_so]
    return problems


@functools.cache
def settings_table():
    """The README's table of settings, which a test compares with src/config/table.rs."""
    return (ROOT / "README.md").read_text().split("<!-- settings -->")[1].split("<!-- /settings -->")[0]


def _pattern(name):
    return re.escape(name).replace("<NAME>", "[A-Z0-9_]+")


def known_settings():
    """Names of the README's table of settings, with those of families as prefixes."""
    names = re.findall(r"`([A-Z][A-Z0-9_]*(?:<NAME>)?[A-Z0-9_]*)`", settings_table())
    return re.compile("|".join(map(_pattern, names)))


# Marked secret because an address may carry a password; without one it is none.
ADDRESSES = {"NATS_URL", "DATABASE_URL", "DRAGONFLY_URL", "REDIS_URL", "K_SINK"}


def settings_by_row():
    return [re.findall(r"`([A-Z][A-Z0-9_<>]+)`", row.split(" | ")[0]) for row in settings_table().splitlines()]


def secret_settings():
    """Names of settings that are secrets, as the table marks them: `X` beside `X_FILE`."""
    return {name for names in settings_by_row() if names and names[-1] == f"{names[0]}_FILE" for name in names[:-1]} - ADDRESSES


def is_secret(name):
    return not name.endswith("_FILE") and any(re.fullmatch(_pattern(secret), name) for secret in secret_settings())


def open_secrets(schema):
    """Secrets that the schema of values lets into `config`, and settings that it keeps out although they are none."""
    let_in = jsonschema.Draft7Validator(schema["properties"]["config"])
    names = {name.replace("<NAME>", "A_1") for names in settings_by_row() for name in names}
    return [f"config takes {name}" if is_secret(name) else f"config does not take {name}"
            for name in sorted(names) if let_in.is_valid({name: "x"}) == is_secret(name)]


def settings_problems(documents):
    """Settings the program does not know, and numbers that do not fit each other."""
    known, problems = known_settings(), []
    maps = {document["metadata"]["name"]: document["data"] for document in of_kind(documents, "ConfigMap")}
    for deployment in of_kind(documents, "Deployment"):
        spec = deployment["spec"]["template"]["spec"]
        container = spec["containers"][0]
        names = [source["configMapRef"]["name"] for source in container["envFrom"] if "configMapRef" in source]
        missing = [name for name in names if name not in maps]
        if missing:
            problems.append(f"there is no ConfigMap {missing}")
            continue
        settings = {name: value for source in names for name, value in maps[source].items()}
        problems += [f"{name} is no setting" for name in settings if not known.fullmatch(name)]
        problems += [f"{name} is a secret" for name in settings if is_secret(name)]
        grace = float(settings["SHUTDOWN_GRACE_SECONDS"])
        if spec["terminationGracePeriodSeconds"] <= grace:
            problems.append("Kubernetes kills the pod within its own grace (terminationGracePeriodSeconds)")
        problems += file_problems(settings, spec, container)
        hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        if hook and ("--timeout" not in hook or int(hook[hook.index("--timeout") + 1]) < grace):
            problems.append("preStop gives up before the grace is over; the second SIGTERM would end it")
        problems += [f"probe {kind} has no {field}" for kind in ("startupProbe", "livenessProbe", "readinessProbe")
                     for field in ("httpGet", "timeoutSeconds", "failureThreshold")
                     if field not in container.get(kind, {})]
    return problems


def file_problems(settings, spec, container):
    """Settings that name a file where the container has no volume, or another one than the file takes."""
    files = {name: path for name, path in settings.items() if path.startswith("/")}
    if "VAULT_AUTH_ROLE" in settings:
        default = re.search(r"^\| `VAULT_JWT_FILE` \| `(.+?)`", settings_table(), re.M)[1]
        files.setdefault("VAULT_JWT_FILE", default)
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    problems = []
    for name, path in files.items():
        mounts = [mount for mount in container["volumeMounts"] if pathlib.PurePath(path).is_relative_to(mount["mountPath"])]
        if not mounts:
            problems.append(f"{name}: no volume has {path}")
        elif name == "VAULT_JWT_FILE":
            sources = volumes[mounts[0]["name"]].get("projected", {}).get("sources", [])
            made = [source["serviceAccountToken"]["path"] for source in sources if "serviceAccountToken" in source]
            if str(pathlib.PurePath(path).relative_to(mounts[0]["mountPath"])) not in made:
                problems.append(f"{name}: nobody makes the token {path}")
    return problems


def refused_settings(documents):
    """What the program itself says of the settings it would get, Secrets filled with something."""
    problems = []
    for deployment in of_kind(documents, "Deployment"):
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        maps = {document["metadata"]["name"]: document["data"] for document in of_kind(documents, "ConfigMap")}
        environment = {name: value for source in container["envFrom"] if "configMapRef" in source
                       for name, value in maps[source["configMapRef"]["name"]].items()}
        secret = {"POSTGRES_HOST": "postgres", "POSTGRES_PASSWORD": "secret", "OPENAI_API_KEY": "secret"}
        done = subprocess.run([os.environ["AGENT_EXECUTOR"], "config"], env={**secret, **environment, "POD_NAME": "pod"},
                              capture_output=True, text=True, timeout=60)
        if done.returncode or "warning" in done.stderr.lower():
            problems.append(done.stderr.strip())
    return problems


def _selected(selector, labels):
    return all(labels.get(name) == value for name, value in selector.items())


def reference_problems(documents):
    """Names and labels that lead nowhere."""
    problems = []
    deployments = {document["metadata"]["name"]: document for document in of_kind(documents, "Deployment")}
    labels = [document["spec"]["template"]["metadata"]["labels"] for document in deployments.values()]
    services = [document["metadata"]["labels"] for document in of_kind(documents, "Service")]
    looks = [
        ("Service", lambda spec: spec["selector"], labels),
        ("PodDisruptionBudget", lambda spec: spec["selector"]["matchLabels"], labels),
        ("ServiceMonitor", lambda spec: spec["selector"]["matchLabels"], services),
        ("PodMonitor", lambda spec: spec["selector"]["matchLabels"], labels),
    ]
    for kind, selector, among in looks:
        for document in of_kind(documents, kind):
            if not any(_selected(selector(document["spec"]), candidate) for candidate in among):
                problems.append(f"{kind}/{document['metadata']['name']} selects nothing")
    for document in deployments.values():
        spec = document["spec"]["template"]["spec"]
        accounts = [account["metadata"]["name"] for account in of_kind(documents, "ServiceAccount")]
        if spec["serviceAccountName"] not in accounts + ["default"]:
            problems.append(f"there is no ServiceAccount {spec['serviceAccountName']}")
        if of_kind(documents, "ScaledObject") and "replicas" in document["spec"]:
            problems.append("the Deployment and the ScaledObject both set the number of pods")
    for scaled in of_kind(documents, "ScaledObject"):
        target = scaled["spec"]["scaleTargetRef"]["name"]
        if target not in deployments:
            problems.append(f"the ScaledObject scales {target}, which is no Deployment")
        problems += scaling_problems(scaled, documents)
    return problems


def scaling_problems(scaled, documents):
    """Whether the scaler looks at the stream and the consumer that the pods use."""
    settings = {name: value for document in of_kind(documents, "ConfigMap") for name, value in document["data"].items()}
    asked = [trigger["metadata"] for trigger in scaled["spec"]["triggers"] if trigger["type"] == "nats-jetstream"]
    pairs = (("stream", "NATS_EXECUTION_STREAM"), ("consumer", "NATS_CONSUMER"))
    problems = [] if asked else ["no trigger asks NATS"]
    return problems + [f"KEDA looks at {field} {metadata[field]}, the pods use {settings.get(name)}"
                       for metadata in asked for field, name in pairs if metadata[field] != settings.get(name)]


def shared_problems(first, second):
    """What two releases in one namespace would both make: objects, streams, dashboards, alerts."""
    def made(documents):
        for document in documents:
            kind = document["kind"]
            yield f"{kind} {document['metadata']['name']}"
            if kind in ("Stream", "Consumer"):
                yield f"{kind} {document['spec'].get('durableName') or document['spec']['name']} of NATS"
            if kind == "ConfigMap":
                yield from (f"dashboard {name}" for name in document["data"] if name.endswith(".json") and name != "request.json")
            if kind == "PrometheusRule":
                yield from (f"alert {rule['alert']}" for group in document["spec"]["groups"] for rule in group["rules"])
            if kind == "ExternalSecret":
                yield f"Secret {document['spec']['target']['name']}"
    return [f"both make {what}" for what in sorted(set(made(first)) & set(made(second)))]


def result_address_problems(*releases):
    """Releases whose PUBLIC_URL leads to no Service, or to one of a release that does not have their jobs."""
    def settings(documents):
        maps = {document["metadata"]["name"]: document["data"] for document in of_kind(documents, "ConfigMap")}
        return maps[of_kind(documents, "Deployment")[0]["metadata"]["name"]]
    schemas = {f"http://{service['metadata']['name']}.{NAMESPACE}.svc.cluster.local:{service['spec']['ports'][0]['port']}":
               settings(documents).get("POSTGRES_SCHEMA") for documents in releases for service in of_kind(documents, "Service")}
    problems = []
    for documents in releases:
        data, name = settings(documents), of_kind(documents, "Deployment")[0]["metadata"]["name"]
        address = data.get("PUBLIC_URL")
        if address not in schemas:
            problems.append(f"{name}: PUBLIC_URL {address} leads to no Service")
        elif schemas[address] != data.get("POSTGRES_SCHEMA"):
            problems.append(f"{name}: PUBLIC_URL {address} leads to a release without its jobs")
    return problems


def network_problems(documents):
    """Whether everything is denied first, and each neighbour's port is open."""
    policies = of_kind(documents, "NetworkPolicy")
    if not policies:
        return ["there is no NetworkPolicy"]
    denies = [policy for policy in policies if set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
              and not policy["spec"].get("ingress") and not policy["spec"].get("egress")]
    problems = [] if denies else ["nothing denies what is not allowed"]
    ports = {port["port"] for policy in policies for rule in policy["spec"].get("egress", []) for port in rule["ports"]}
    problems += [f"no way out to port {port} ({who})" for port, who in
                 ((53, "DNS"), (4222, "NATS"), (5432, "Postgres"), (6379, "Dragonfly"), (443, "models")) if port not in ports]
    for policy in policies:
        for rule in policy["spec"].get("egress", []):
            for peer in rule.get("to", [{}]):
                block = peer.get("ipBlock")
                if not peer or (block and block["cidr"] == "0.0.0.0/0" and "169.254.0.0/16" not in block.get("except", [])):
                    problems.append(f"{policy['metadata']['name']} lets pods reach the cloud's metadata service")
    return problems


def way_problems(documents):
    """Addresses in the cluster among the settings that no policy opens a way to, taking the ports of pods for those of their
    Services; and large results that nobody may fetch."""
    policies = {policy["metadata"]["name"].rpartition("-")[2]: policy["spec"] for policy in of_kind(documents, "NetworkPolicy")}
    if not policies:
        return []
    ways = {(peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"], port["port"])
            for rule in policies["egress"]["egress"] for peer in rule["to"] if "namespaceSelector" in peer for port in rule["ports"]}
    problems = []
    settings = next(document["data"] for document in of_kind(documents, "ConfigMap") if "PORT" in document["data"])
    addresses = [(name, part) for name, value in settings.items() for part in value.split(",") if name != "PUBLIC_URL"]
    for name, value in addresses:
        address = urllib.parse.urlsplit(f"redis://{value}:6379" if name == "DRAGONFLY_HOST" else value)
        host, port = address.hostname or "", address.port or {"https": 443}.get(address.scheme, 80)
        service, _, rest = host.partition(".")
        namespace, *domain = rest.split(".") if rest else (NAMESPACE, "svc")
        if service and domain[:1] == ["svc"] and (namespace, port) not in ways:
            problems.append(f"{name}: no way out to port {port} of {namespace}")
    if "PUBLIC_URL" in settings and len(policies["ingress"]["ingress"][0]["from"]) < 3:
        problems.append("PUBLIC_URL: only Prometheus and the tests may come in")
    return problems


# ---------------------------------------------------------------- observability

def exported_metrics():
    """What `/metrics` may show: the constants of src/telemetry/metric.rs; a live test holds them against a run."""
    return set(re.findall(r'= "(agent_executor_\w+)"', (ROOT / "src/telemetry/metric.rs").read_text()))


def metric_problems(expressions, known=None):
    """Metrics in expressions that nothing exports."""
    known = exported_metrics() if known is None else known
    problems = []
    for where, expression in expressions:
        bare = re.sub(r'\$\w+', '0', re.sub(r'"[^"]*"', '""', expression))
        for name in set(re.findall(r"\b[a-z][a-z0-9]*_[a-z0-9_]+\b(?=\s*[\[{)]|\s+[-+*/><=]|\s*$)", bare)):
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            if name not in known and base not in known and not re.search(rf"(by|without|on|ignoring|group_left)\s*\([^)]*\b{name}\b", bare):
                problems.append(f"{where}: nothing exports {name}")
    return problems


def parse_problems(expressions):
    """Expressions that Prometheus cannot read; Grafana's variables get a value first."""
    rules = []
    for number, (where, expression) in enumerate(expressions):
        expression = expression.replace("$__rate_interval", "5m").replace("$input_price", "1").replace("$output_price", "1")
        expression = re.sub(r'"\$\w+"', '".*"', expression)
        rules.append({"record": f"panel_{number}", "expr": expression, "labels": {"where": where}})
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "rules.yaml"
        path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
        return complaint(run("promtool", "check", "rules", path))


def dashboard_expressions(folder=CHART / "dashboards"):
    for path in sorted(folder.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                yield f"{path.stem}/{panel['title']}", target["expr"]


def alerts(path=CHART / "alerts/alerts.yaml"):
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def alert_expressions(rules):
    return [(rule["alert"], rule["expr"]) for rule in rules]


def alert_test_problems(rules_path=CHART / "alerts/alerts.yaml", tests_path=ROOT / "observability/alerts_test.yaml"):
    """What promtool says of the rules and their tests, and alerts that are not shown to fire and not to fire."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(rules_path, pathlib.Path(folder) / "alerts.yaml")
        shutil.copy(tests_path, pathlib.Path(folder) / "alerts_test.yaml")
        problems = complaint(run("promtool", "check", "rules", "--lint=all", "--lint-fatal", "alerts.yaml", folder=folder))
        problems += complaint(run("promtool", "test", "rules", "alerts_test.yaml", folder=folder))
    shown = {(case["alertname"], bool(case["exp_alerts"]))
             for test in yaml.safe_load(tests_path.read_text())["tests"] for case in test["alert_rule_test"]}
    for rule in alerts(rules_path):
        problems += [f"{rule['alert']} is never shown {'to fire' if fires else 'not to fire'}"
                     for fires in (True, False) if (rule["alert"], fires) not in shown]
    return problems


def runbook_problems(rules, playbooks):
    """Alerts without a page."""
    anchors = {anchor(heading) for heading in re.findall(r"^#+ (.+)$", playbooks, re.M)}
    return [f"{rule['alert']}: the playbooks have no heading for {rule['annotations']['runbook_url']}"
            for rule in rules if rule["annotations"]["runbook_url"].partition("#")[2] not in anchors]


# ---------------------------------------------------------------- documents

def anchor(heading):
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "")).strip().lower().replace(" ", "-")


def _without_code(text):
    return re.sub(r"```.*?```|`[^`\n]*`|^    .*$", "", text, flags=re.S | re.M)


def link_problems(paths, root=ROOT):
    """Links between our documents that lead nowhere."""
    problems = []
    for path in paths:
        for target in re.findall(r"\]\(([^)\s]+)\)", _without_code(path.read_text())):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, fragment = target.partition("#")
            other = (path.parent / name).resolve() if name else path
            if not other.exists():
                problems.append(f"{path.relative_to(root)}: {target} is not there")
            elif fragment and other.suffix == ".md":
                headings = re.findall(r"^#+ (.+)$", other.read_text(), re.M)
                if fragment not in {anchor(heading) for heading in headings}:
                    problems.append(f"{path.relative_to(root)}: {target} names no heading")
    return problems


def code_lines(text):
    """Everything in a document that is set as code, and whether it is a line of its own: continued ones are joined."""
    text = re.sub(r"\\\n\s*", "", text)
    fenced = False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip(), True
        else:
            yield from ((span, False) for span in re.findall(r"`([^`]+)`", line))


# What documents say in place of something that has a form.
EXAMPLES = {"ID": "1ef4f797-8335-6428-8001-8a1503f9b875"}


def documented_commands(text):
    """Arguments of every call of our program in a document, as a shell would give them."""
    for line, is_call in code_lines(text):
        call = re.search(r"(?:^|[\s/])agent-executor +([a-z][a-z-]*(?: .*|$))|cargo run .*-- +([a-z].*)", line)
        if not call or re.match(r"helm |kubectl (?!.*exec)", line):
            continue
        words = shlex.shlex(call[1] or call[2], posix=True, punctuation_chars="|&;<>()")
        words.whitespace_split = True
        arguments = [word for word in itertools.takewhile(lambda word: not set(word) <= set("|&;<>()"), words) if word[0] != "["]
        # "as `agent-executor dlq replay` does" names a command and is no call of it.
        is_name = not is_call and len(arguments) <= 2 and all(re.fullmatch(r"[a-z-]+", word) for word in arguments)
        yield line, [*arguments, "--help"] if is_name else [EXAMPLES.get(word, word) for word in arguments]


# Nobody listens on port 1. What a command would do afterwards is not waited for: wrong usage ends it at once.
UNREACHABLE = {"NATS_URL": "nats://127.0.0.1:1", "DATABASE_URL": "postgres://x@127.0.0.1:1/x",
               "DRAGONFLY_URL": "redis://127.0.0.1:1", "PORT": "0", "LISTEN_ADDRESS": "127.0.0.1"}
WRONG_USAGE = 2


def usage_problem(binary, arguments):
    """What the program says when it cannot read its arguments; settings without a meaning are no usage of it."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run([binary, *arguments], cwd=folder, env={**UNREACHABLE, "HOME": folder, "PATH": ""},
                                  stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=5)
        except subprocess.TimeoutExpired:
            return None
    return done.stderr.strip().splitlines()[0] if done.returncode == WRONG_USAGE else None


def command_problems(paths, binary, root=ROOT):
    """Calls of our program in documents that it does not understand. Each is really made, with no server to be found."""
    calls = [(path, line, arguments) for path in paths for line, arguments in documented_commands(path.read_text())]
    distinct = sorted({tuple(arguments) for _, _, arguments in calls})
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        said = dict(zip(distinct, pool.map(lambda arguments: usage_problem(binary, arguments), distinct), strict=True))
    return [f"{path.relative_to(root)}: {said[tuple(arguments)]}: {line}" for path, line, arguments in calls
            if said[tuple(arguments)]]


# Names in capitals that are neither settings nor error codes of ours: of builds and tests, of shells and libraries, of a
# definition's `errors`, and two slips that the README shows.
FOREIGN = {"AGENT_EXECUTOR_CONFIG", "API_KEY", "CRM_KEY", "GIT_COMMIT", "RUST_IMAGE", "PYTHON_IMAGE", "K8S_SCHEMAS", "UPDATE_EXPECT", "HTTP_PROXY",
           "HTTPS_PROXY", "SSL_CERT_FILE", "LC_ALL", "XDG_STATE_HOME", "UNKNOWN_WISH", "NATS_ULR", "STREAM_MAX_LENGTH"}


def capital_problems(text):
    """Settings and error codes in a document's code that nobody knows."""
    codes = set(re.findall(r"^#+ ([A-Z][A-Z0-9_]+)$", (ROOT / "TROUBLESHOOTING.md").read_text(), re.M))
    streams = {value for name in ("values", "values-green")
               for value in yaml.safe_load((CHART / f"{name}.yaml").read_text())["nats"].values() if isinstance(value, str)}
    known, problems = known_settings(), []
    names = {name for line, _ in code_lines(text) for name in re.findall(r"(?<![\w$.])[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+(?![\w…])", line)}
    for name in sorted(names - codes - streams - FOREIGN):
        if not known.fullmatch(name):
            problems.append(f"{name} is neither a setting nor an error code")
    return problems


def value_problems(text):
    """Values of the chart in a document that the chart does not have."""
    values, problems = yaml.safe_load((CHART / "values.yaml").read_text()), []
    named = {name for line, _ in code_lines(text)
             for name in re.findall(r"(?:--set |,|^)([a-zA-Z]+(?:\.[a-zA-Z_]+)+)(?==|$|:|,)", line)}
    for name in sorted(named):
        first, *rest = name.split(".")
        if first not in values or first == "config":
            continue
        value = values[first]
        for part in rest:
            value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            problems.append(f"the chart has no {name}")
    return problems


# ---------------------------------------------------------------- image and compose

def dockerfile_problems(path=ROOT / "Dockerfile"):
    return complaint(run("hadolint", "--failure-threshold", "style", path))


def compose_problems(text, root=ROOT):
    """Pictures without a version, files that are not there, neighbours that are not."""
    compose, problems = yaml.safe_load(text), []
    known = known_settings()
    services = compose["services"]
    for name, service in services.items():
        image = service.get("image", "")
        if not service.get("build") and (":" not in image or image.endswith(":latest")):
            problems.append(f"{name}: {image!r} has no version")
        depends = service.get("depends_on", {})
        problems += [f"{name}: waits for {other}, which is not there" for other in depends if other not in services]
        problems += [f"{name}: {other} has no healthcheck to wait for" for other, how in
                     (depends.items() if isinstance(depends, dict) else [])
                     if how.get("condition") == "service_healthy" and other in services
                     and "healthcheck" not in services[other] and not services[other].get("build")]
        for volume in service.get("volumes", []):
            source = str(volume).split(":")[0]
            if source.startswith(".") and not (root / source).exists():
                problems.append(f"{name}: there is no {source}")
            if not source.startswith((".", "/")) and source not in compose.get("volumes", {}):
                problems.append(f"{name}: volume {source} is not declared")
        if service.get("build"):
            problems += [f"{name}: {key} is no setting" for key in service.get("environment", {}) if not known.fullmatch(key)]
    return problems
