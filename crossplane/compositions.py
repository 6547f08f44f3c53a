#!/usr/bin/env python3
"""Crossplane's definitions as code: writes crossplane/v1 and crossplane/v2; `--check` only compares.

The three kinds are described once. `v1` is for Crossplane 1.20 and for claims in 2.x: cluster-scoped composites, claims in
namespaces, everything composed through provider-kubernetes. `v2` is the namespaced form of Crossplane 2.x, without claims.
"""
import copy
import pathlib
import sys

import yaml

HERE = pathlib.Path(__file__).resolve().parent
GROUP = "platform.agent-executor.dev"
FUNCTION = {"name": "function-patch-and-transform"}
HEADER = "# Made by crossplane/compositions.py; change it there.\n"

# cpu, memory, and instances of a size; then what a pod of the service may hold: jobs, bytes of messages, connections.
SIZES = {
    "micro": ("100m", "256Mi", 1, 10, 33554432, 4),
    "small": ("250m", "512Mi", 1, 50, 134217728, 8),
    "medium": ("1", "2Gi", 2, 200, 536870912, 16),
    "large": ("4", "8Gi", 3, 800, 2147483648, 32),
}
# Settings of the service that go with its size.
SIZED_SETTINGS = {"MAX_CONCURRENT_JOBS": 3, "MAX_BYTES_IN_FLIGHT": 4, "POSTGRES_MAX_CONNECTIONS": 5}


# ---------------------------------------------------------------- patches

def sized(position, target, kind="string"):
    """Writes what the size stands for."""
    pairs = {size: values[position] for size, values in SIZES.items()}
    transforms = [{"type": "map", "map": {size: str(value) for size, value in pairs.items()}}]
    if kind == "int":
        transforms.append({"type": "convert", "convert": {"toType": "int64"}})
    return {"type": "FromCompositeFieldPath", "fromFieldPath": "spec.size", "toFieldPath": target, "transforms": transforms}


def copied(source, target, fmt=None):
    patch = {"type": "FromCompositeFieldPath", "fromFieldPath": source, "toFieldPath": target,
             "policy": {"fromFieldPath": "Required"}}
    if fmt:
        patch["transforms"] = [{"type": "string", "string": {"type": "Format", "fmt": fmt}}]
    return patch


class Form:
    """What differs between v1 and v2: where name and namespace stand, and what composes an object."""

    def __init__(self, version):
        self.version = version
        claim = version == "v1"
        self.name = "spec.claimRef.name" if claim else "metadata.name"
        self.namespace = "spec.claimRef.namespace" if claim else "metadata.namespace"
        self.api = "kubernetes.crossplane.io/v1alpha2" if claim else "kubernetes.m.crossplane.io/v1alpha1"

    def resource(self, name, manifest, patches=(), secrets=(), ready=None):
        """An object of provider-kubernetes around `manifest`. `patches` have targets within the manifest; `secrets` are
        (kind, suffix of the name, field, key of the connection secret)."""
        spec = {"forProvider": {"manifest": copy.deepcopy(manifest)}, "readiness": ready or {"policy": "SuccessfulCreate"}}
        inside = "spec.forProvider.manifest."
        made = [{**patch, "toFieldPath": inside + patch["toFieldPath"]} for patch in patches]
        made.append(copied(self.namespace, inside + "metadata.namespace"))
        if secrets:
            spec["connectionDetails"] = [
                {"apiVersion": "v1", "kind": kind, "fieldPath": field, "toConnectionSecretKey": key}
                for kind, _, field, key in secrets]
            for at, (_, suffix, _, _) in enumerate(secrets):
                made.append(copied(self.name, f"spec.connectionDetails[{at}].name", "%s" + suffix))
                made.append(copied(self.namespace, f"spec.connectionDetails[{at}].namespace"))
            spec["writeConnectionSecretToRef"] = {}
            made.append(copied("metadata.uid", "spec.writeConnectionSecretToRef.name", f"%s-{name}"))
            if self.version == "v1":
                spec["writeConnectionSecretToRef"]["namespace"] = "crossplane-system"
        spec["providerConfigRef"] = {"name": "default"}
        if self.version == "v2":
            spec["providerConfigRef"]["kind"] = "ClusterProviderConfig"
        resource = {"name": name, "base": {"apiVersion": self.api, "kind": "Object", "spec": spec}, "patches": made}
        if secrets:
            resource["connectionDetails"] = [{"name": key, "type": "FromConnectionSecretKey", "fromConnectionSecretKey": key}
                                             for _, _, _, key in secrets]
        return resource

    def named(self, fmt="%s", target="metadata.name"):
        return copied(self.name, target, fmt)


# ---------------------------------------------------------------- the kinds

FROM_OBJECT = {"policy": "DeriveFromObject"}


def postgres(form):
    cluster = {
        "apiVersion": "postgresql.cnpg.io/v1", "kind": "Cluster",
        "spec": {
            "instances": 1,
            "bootstrap": {"initdb": {"database": "agent_executor", "owner": "agent_executor"}},
            "storage": {"size": "10Gi"},
            "resources": {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "512Mi"}},
            # Each executor keeps POSTGRES_MAX_CONNECTIONS + POSTGRES_COMMIT_CONNECTIONS of them.
            "postgresql": {"parameters": {"max_connections": "400"}},
            "monitoring": {"enablePodMonitor": False},
        },
    }
    patches = [
        form.named(), copied("spec.storageGB", "spec.storage.size", "%dGi"),
        copied("spec.version", "spec.imageName", "ghcr.io/cloudnative-pg/postgresql:%s"),
        sized(0, "spec.resources.requests.cpu"), sized(1, "spec.resources.requests.memory"),
        sized(1, "spec.resources.limits.memory"), sized(2, "spec.instances", "int"),
    ]
    # The operator writes the Secret <name>-app.
    secrets = [("Secret", "-app", f"data.{field}", f"POSTGRES_{key}") for field, key in
               (("host", "HOST"), ("port", "PORT"), ("dbname", "DB"), ("username", "USER"), ("password", "PASSWORD"))]
    return [form.resource("cluster", cluster, patches, secrets, FROM_OBJECT)]


def dragonfly(form):
    generator = {"apiVersion": "generators.external-secrets.io/v1alpha1", "kind": "Password",
                 "spec": {"length": 32, "digits": 8, "symbols": 0, "noUpper": False, "allowRepeat": True}}
    secret = {
        "apiVersion": "external-secrets.io/v1", "kind": "ExternalSecret",
        "spec": {
            # Once: a new password would lock out those who have the old one.
            "refreshPolicy": "CreatedOnce",
            "target": {"name": "x", "creationPolicy": "Owner"},
            "dataFrom": [{"sourceRef": {"generatorRef": {
                "apiVersion": "generators.external-secrets.io/v1alpha1", "kind": "Password", "name": "x"}}}],
        },
    }
    instance = {
        "apiVersion": "dragonflydb.io/v1alpha1", "kind": "Dragonfly",
        "spec": {
            "replicas": 1,
            "authentication": {"passwordFromSecret": {"name": "x", "key": "password"}},
            "resources": {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "512Mi"}},
            "snapshot": {"dir": "/dragonfly/snapshots", "cron": "*/15 * * * *", "persistentVolumeClaimSpec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}}},
        },
    }
    patches = [
        form.named(), form.named("%s-auth", "spec.authentication.passwordFromSecret.name"),
        copied("spec.version", "spec.image", "docker.dragonflydb.io/dragonflydb/dragonfly:%s"),
        copied("spec.storageGB", "spec.snapshot.persistentVolumeClaimSpec.resources.requests.storage", "%dGi"),
        sized(0, "spec.resources.requests.cpu"), sized(1, "spec.resources.requests.memory"),
        sized(1, "spec.resources.limits.memory"), sized(2, "spec.replicas", "int"),
    ]
    secrets = [("Service", "", "metadata.name", "DRAGONFLY_HOST"), ("Secret", "-auth", "data.password", "DRAGONFLY_PASSWORD")]
    made = form.resource("dragonfly", instance, patches, secrets,
                         {"policy": "DeriveFromCelQuery", "celQuery": "object.status.phase == 'ready'"})
    made["connectionDetails"].append({"name": "DRAGONFLY_PORT", "type": "FromValue", "value": "6379"})
    generated = [form.named("%s-auth"), form.named("%s-auth", "spec.target.name"),
                 form.named("%s-auth", "spec.dataFrom[0].sourceRef.generatorRef.name")]
    return [form.resource("password", generator, [form.named("%s-auth")]),
            form.resource("secret", secret, generated, ready=FROM_OBJECT), made]


def service(form):
    labels = "app.kubernetes.io/instance"
    container = {
        "name": "service",
        "args": ["serve"],
        "ports": [{"name": "http", "containerPort": 8080}],
        "env": [{"name": "NATS_URL"}, {"name": "NATS_EXECUTION_STREAM"}, {"name": "NATS_CONSUMER"},
                *({"name": name} for name in SIZED_SETTINGS),
                {"name": "SHUTDOWN_GRACE_SECONDS", "value": "60"},
                {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "envFrom": [{"secretRef": {"name": "x"}}, {"secretRef": {"name": "x"}}, {"secretRef": {"name": "x"}}],
        "resources": {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "runAsNonRoot": True,
                            "capabilities": {"drop": ["ALL"]}},
        "startupProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 2, "failureThreshold": 60, "timeoutSeconds": 3},
        "livenessProbe": {"httpGet": {"path": "/health", "port": "http"}, "failureThreshold": 6, "timeoutSeconds": 5},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 5, "failureThreshold": 3, "timeoutSeconds": 5},
        "lifecycle": {"preStop": {"exec": {"command": ["/usr/local/bin/agent-executor", "drain", "--timeout", "75"]}}},
    }
    deployment = {
        "apiVersion": "apps/v1", "kind": "Deployment",
        "spec": {
            "selector": {"matchLabels": {}},
            "template": {"metadata": {"labels": {}}, "spec": {
                "automountServiceAccountToken": False, "enableServiceLinks": False, "terminationGracePeriodSeconds": 75,
                "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532,
                                    "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [container]}},
        },
    }
    inside = "spec.template.spec.containers[0]."
    patches = [
        form.named(), form.named(target=f"spec.selector.matchLabels[{labels}]"),
        form.named(target=f"spec.template.metadata.labels[{labels}]"), copied("spec.image", inside + "image"),
        copied("spec.nats.url", inside + "env[0].value"), copied("spec.nats.stream", inside + "env[1].value"),
        copied("spec.nats.consumer", inside + "env[2].value"),
        copied("spec.secrets.postgres", inside + "envFrom[0].secretRef.name"),
        copied("spec.secrets.dragonfly", inside + "envFrom[1].secretRef.name"),
        copied("spec.secrets.service", inside + "envFrom[2].secretRef.name"),
        sized(0, inside + "resources.requests.cpu"), sized(1, inside + "resources.requests.memory"),
        sized(1, inside + "resources.limits.memory"),
        *(sized(position, f"{inside}env[{at}].value") for at, position in enumerate(SIZED_SETTINGS.values(), start=3)),
    ]
    door = {"apiVersion": "v1", "kind": "Service",
            "spec": {"selector": {}, "ports": [{"name": "http", "port": 8080, "targetPort": "http"}]}}
    scaled = {
        "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject",
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x"},
            "minReplicaCount": 1, "maxReplicaCount": 10, "pollingInterval": 5, "cooldownPeriod": 30,
            "advanced": {"restoreToOriginalReplicaCount": False, "horizontalPodAutoscalerConfig": {"behavior": {
                "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [
                    {"type": "Percent", "value": 100, "periodSeconds": 15}, {"type": "Pods", "value": 4, "periodSeconds": 15}]},
                "scaleDown": {"stabilizationWindowSeconds": 120, "selectPolicy": "Max", "policies": [
                    {"type": "Pods", "value": 1, "periodSeconds": 30}]}}}},
            "triggers": [{"type": "nats-jetstream", "metadata": {
                "natsServerMonitoringEndpoint": "x", "account": "$G", "stream": "x", "consumer": "x", "lagThreshold": "5",
                "activationLagThreshold": "0"}}],
        },
    }
    trigger = "spec.triggers[0].metadata."
    scaling = [
        form.named(), form.named(target="spec.scaleTargetRef.name"),
        copied("spec.scaling.min", "spec.minReplicaCount"), copied("spec.scaling.max", "spec.maxReplicaCount"),
        copied("spec.scaling.lagThreshold", trigger + "lagThreshold", "%d"),
        copied("spec.nats.monitoringEndpoint", trigger + "natsServerMonitoringEndpoint"),
        copied("spec.nats.account", trigger + "account"), copied("spec.nats.stream", trigger + "stream"),
        copied("spec.nats.consumer", trigger + "consumer"),
    ]
    budget = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
              "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {}}}}
    return [
        form.resource("deployment", deployment, patches),
        form.resource("service", door, [form.named(), form.named(target=f"spec.selector[{labels}]")]),
        form.resource("scaling", scaled, scaling, ready=FROM_OBJECT),
        form.resource("budget", budget, [form.named(), form.named(target=f"spec.selector.matchLabels[{labels}]")]),
    ]


def text(default=None, **more):
    return {"type": "string", **({"default": default} if default is not None else {"minLength": 1}), **more}


def number(default, least, most):
    return {"type": "integer", "default": default, "minimum": least, "maximum": most}


def part(properties, required=()):
    made = {"type": "object", "properties": properties}
    if required:
        made["required"] = list(required)
    elif all("default" in field for field in properties.values()):
        made["default"] = {}
    return made


SIZE = {"type": "string", "enum": list(SIZES), "default": "small"}
KINDS = {
    "PostgresInstance": (
        postgres, ["POSTGRES_HOST", "POSTGRES_PORT", "POSTGRES_DB", "POSTGRES_USER", "POSTGRES_PASSWORD"],
        part({"size": SIZE, "version": text("17.4", pattern=r"^[0-9]+(\.[0-9]+)?$"), "storageGB": number(10, 1, 16000)}),
        {"size": "medium", "version": "17.4", "storageGB": 50}),
    "DragonflyInstance": (
        dragonfly, ["DRAGONFLY_HOST", "DRAGONFLY_PORT", "DRAGONFLY_PASSWORD"],
        part({"size": SIZE, "version": text("v1.27.1", pattern=r"^v[0-9]+\.[0-9]+\.[0-9]+$"), "storageGB": number(10, 1, 16000)}),
        {"size": "small", "version": "v1.27.1", "storageGB": 10}),
    "EventDrivenService": (
        service, [],
        part({
            "image": text(), "size": SIZE,
            "nats": part({
                "url": text("nats://nats.nats.svc.cluster.local:4222"), "account": text("$G"),
                "monitoringEndpoint": text("nats-headless.nats.svc.cluster.local:8222"),
                "stream": text("AGENT_EXECUTION"), "consumer": text("agent-executor-workers")}),
            "scaling": part({"min": number(1, 0, 1000), "max": number(10, 1, 1000), "lagThreshold": number(5, 1, 5000)}),
            "secrets": part({"postgres": text(), "dragonfly": text(), "service": text()}, ("postgres", "dragonfly", "service")),
        }, ("image", "secrets")),
        {"image": "registry.example.com/platform/agent-executor:0.1.0", "size": "medium", "scaling": {"min": 1, "max": 10},
         "secrets": {"postgres": "agent-executor-postgres", "dragonfly": "agent-executor-dragonfly", "service": "agent-executor"}}),
}
EXAMPLE_NAMES = {"PostgresInstance": "agent-executor-postgres", "DragonflyInstance": "agent-executor-dragonfly",
                 "EventDrivenService": "agent-executor"}


# ---------------------------------------------------------------- documents

def plural(kind):
    return kind.lower() + "s"


def definition(kind, version):
    _, keys, spec, _ = KINDS[kind]
    claim = version == "v1"
    names = {"kind": f"X{kind}" if claim else kind, "plural": ("x" if claim else "") + plural(kind)}
    made = {
        "apiVersion": f"apiextensions.crossplane.io/{version}", "kind": "CompositeResourceDefinition",
        "metadata": {"name": f"{names['plural']}.{GROUP}"},
        "spec": {
            "group": GROUP, "names": names,
            "versions": [{"name": "v1alpha1", "served": True, "referenceable": True,
                          "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec},
                                                         "required": ["spec"]}}}],
        },
    }
    if claim:
        made["spec"]["claimNames"] = {"kind": kind, "plural": plural(kind)}
        if keys:
            made["spec"]["connectionSecretKeys"] = keys
    else:
        made["spec"]["scope"] = "Namespaced"
    return made


def composition(kind, version):
    make, keys, _, _ = KINDS[kind]
    form = Form(version)
    given = {"apiVersion": "pt.fn.crossplane.io/v1beta1", "kind": "Resources", "resources": make(form)}
    if version == "v2" and keys:
        given["writeConnectionSecretToRef"] = {"patches": [
            {"type": "FromCompositeFieldPath", "fromFieldPath": "metadata.name", "toFieldPath": "name"}]}
    return {
        "apiVersion": "apiextensions.crossplane.io/v1", "kind": "Composition",
        "metadata": {"name": f"{plural(kind)}.{GROUP}"},
        "spec": {
            "compositeTypeRef": {"apiVersion": f"{GROUP}/v1alpha1", "kind": f"X{kind}" if version == "v1" else kind},
            "mode": "Pipeline",
            "pipeline": [{"step": "compose", "functionRef": FUNCTION, "input": given}],
        },
    }


def example(kind, version):
    _, keys, _, spec = KINDS[kind]
    name = EXAMPLE_NAMES[kind]
    spec = copy.deepcopy(spec)
    if version == "v1" and keys:
        spec["writeConnectionSecretToRef"] = {"name": name}
    return {"apiVersion": f"{GROUP}/v1alpha1", "kind": kind,
            "metadata": {"name": name, "namespace": "intelligence-deepagents"}, "spec": spec}


class Plain(yaml.SafeDumper):
    """No anchors: what stands twice is written twice."""

    def ignore_aliases(self, data):
        return True


def rendered():
    """Path below this folder and text of every file."""
    files = {}
    for version in ("v1", "v2"):
        for kind in KINDS:
            documents = [definition(kind, version), composition(kind, version)]
            files[f"{version}/{kind.lower()}.yaml"] = documents
        # Not beside the definitions: whoever applies those asks for no database yet.
        files[f"{version}/examples/claims.yaml"] = [example(kind, version) for kind in KINDS]
    return {name: HEADER + yaml.dump_all(documents, Dumper=Plain, sort_keys=False, width=120)
            for name, documents in files.items()}


def main():
    files = rendered()
    if sys.argv[1:] == ["--check"]:
        there = {str(path.relative_to(HERE)): path.read_text() for path in HERE.glob("v*/**/*.yaml")}
        wrong = sorted(name for name in files.keys() | there.keys() if files.get(name) != there.get(name))
        if wrong:
            sys.exit(f"not what crossplane/compositions.py makes: {', '.join(wrong)}; run it again")
        return
    for name, text_of in files.items():
        (HERE / name).parent.mkdir(parents=True, exist_ok=True)
        (HERE / name).write_text(text_of)


if __name__ == "__main__":
    main()
