"""What a pod with a refresher and workers has to keep to: policies as pure functions over manifests.

Each takes a `Rendering` and says what breaks it, in words. They see values as Kubernetes would get them, and know
nothing of what made them: a chart, or a file in docs/kubernetes/.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Mapping = dict[str, Any]

REFRESHER_IMAGE = re.compile(r"/krbrefresh-refresher[:@]")
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1123, as Kubernetes' names of most kinds
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
LABEL_KEY = re.compile(r"(?:[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
ANY_USERS_SECRET = re.compile(r"KRB5_(CLIENT_)?KTNAME|KRBREFRESH__|SIGNING_KEY|KEYTAB")
MOST_TOKENS = 64 * 1024**2  # bytes; a token has 4 MiB at the most, and an emptyDir in memory counts as the pod's memory
# https://kubernetes.io/docs/concepts/security/pod-security-standards/
VOLUME_TYPES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
LONGEST_CRON_JOB = 52  # its Jobs have eleven characters more


@dataclass(frozen=True)
class Pod:
    """A pod, or what makes pods."""

    owner: str  # "Deployment etl"
    kind: str
    metadata: Mapping
    spec: Mapping

    @property
    def containers(self) -> list[Mapping]:
        return [
            each
            for group in ("initContainers", "containers", "ephemeralContainers")
            for each in self.spec.get(group) or []
        ]

    @staticmethod
    def is_refresher(container: Mapping) -> bool:
        """By what it runs: a name proves nothing."""
        return bool(REFRESHER_IMAGE.search(container["image"]))

    @staticmethod
    def stays(container: Mapping) -> bool:
        return "once" not in (container.get("args") or [])

    @property
    def refreshers(self) -> list[Mapping]:
        return [each for each in self.containers if self.is_refresher(each)]

    @property
    def workers(self) -> list[Mapping]:
        """All others: what else runs in the pod is trusted as little."""
        return [each for each in self.containers if not self.is_refresher(each)]

    @property
    def volumes(self) -> dict[str, Mapping]:
        return {each["name"]: each for each in self.spec.get("volumes") or []}

    @property
    def token_volumes(self) -> set[str]:
        """What a refresher writes to."""
        return {mount["name"] for each in self.refreshers for mount in mounts(each) if not mount.get("readOnly", False)}

    @property
    def private_volumes(self) -> set[str]:
        """Keytabs and signing keys: what a refresher gets from a Secret."""
        mounted = {mount["name"] for each in self.refreshers for mount in mounts(each)}
        return {name for name, volume in self.volumes.items() if name in mounted and volume_secrets(volume)}


@dataclass(frozen=True)
class Rendering:
    """Manifests that belong together."""

    documents: Sequence[Mapping]
    kubernetes: str = "1.29"  # the version that they are for
    outside: frozenset[str | tuple[str, str]] = frozenset()  # Secrets and ConfigMaps, or their names, that are there
    private: frozenset[str] = frozenset()  # names of Secrets that workers must not see, whoever mounts them
    key_material: tuple[str, ...] = ()  # what must stand in no document but a Secret
    pods: list[Pod] = field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        self.pods.extend(
            Pod(title(document), document["kind"], template.get("metadata") or {}, template["spec"])
            for document in self.documents
            if (template := pod_template(document)) is not None
        )

    @property
    def private_secrets(self) -> set[str]:
        """Secrets that a refresher has, and those that are said to be private."""
        mounted = {
            name for pod in self.pods for volume in pod.private_volumes for name in volume_secrets(pod.volumes[volume])
        }
        given = {
            name
            for pod in self.pods
            for each in pod.refreshers
            for kind, name, _ in environment_references(each)
            if kind == "Secret"
        }
        return mounted | given | set(self.private)

    def of(self, *kinds: str) -> list[Mapping]:
        return [each for each in self.documents if each["kind"] in kinds]


Policy = Callable[[Rendering], Iterator[str]]
POLICIES: dict[str, Policy] = {}


def policy(function: Policy) -> Policy:
    POLICIES[function.__name__] = function
    return function


def broken(rendering: Rendering, *names: str) -> list[str]:
    """What breaks these policies, or any."""
    return [f"{name}: {each}" for name in names or POLICIES for each in POLICIES[name](rendering)]


# --- manifests ---


def title(document: Mapping) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


def pod_template(document: Mapping) -> Mapping | None:
    """What has the spec of a pod and its metadata."""
    kind = document["kind"]
    if kind == "Pod":
        return document
    if kind == "CronJob":
        return document["spec"]["jobTemplate"]["spec"]["template"]  # type: ignore[no-any-return]
    if kind in {"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"}:
        return document["spec"]["template"]  # type: ignore[no-any-return]
    return None


def mounts(container: Mapping) -> list[Mapping]:
    return list(container.get("volumeMounts") or [])


def volume_secrets(volume: Mapping) -> set[str]:
    """The Secrets whose content is in a volume."""
    found = set()
    if secret := volume.get("secret"):
        found.add(secret.get("secretName"))
    for source in (volume.get("projected") or {}).get("sources") or []:
        if secret := source.get("secret"):
            found.add(secret.get("name"))
    for driver in ("csi", "flexVolume"):
        options = volume.get(driver) or {}
        reference = options.get("nodePublishSecretRef") or options.get("secretRef")
        if reference:
            found.add(reference.get("name"))
    return found


def volume_config_maps(volume: Mapping) -> set[str]:
    found = set()
    if config := volume.get("configMap"):
        found.add(config.get("name"))
    for source in (volume.get("projected") or {}).get("sources") or []:
        if config := source.get("configMap"):
            found.add(config.get("name"))
    return found


def environment_references(container: Mapping) -> Iterator[tuple[str, str, str | None]]:
    """Kind, name and key of what the environment is taken from."""
    for variable in container.get("env") or []:
        source = variable.get("valueFrom") or {}
        for word, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
            if reference := source.get(word):
                yield kind, reference["name"], reference["key"]
    for source in container.get("envFrom") or []:
        for word, kind in (("secretRef", "Secret"), ("configMapRef", "ConfigMap")):
            if reference := source.get(word):
                yield kind, reference["name"], None


def matches(selector: Mapping | None, labels: Mapping | None) -> bool:
    """As a LabelSelector does; one that is empty matches everything, one that is not there nothing."""
    if selector is None:
        return False
    labels = labels or {}
    if not (selector.get("matchLabels") or {}).items() <= labels.items():
        return False
    for each in selector.get("matchExpressions") or []:
        value, operator = labels.get(each["key"]), each["operator"]
        agrees = {
            "In": value in (each.get("values") or []),
            "NotIn": value not in (each.get("values") or []),
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[operator]
        if not agrees:
            return False
    return True


def selectors(document: Mapping) -> list[Mapping]:
    """By which it chooses pods."""
    spec = document.get("spec") or {}
    if document["kind"] in {"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"}:
        return [spec["selector"]]
    if document["kind"] in {"PodMonitor", "PodDisruptionBudget"}:
        return [spec["selector"]]
    if document["kind"] == "NetworkPolicy":
        return [spec["podSelector"]]
    if document["kind"] == "Service" and spec.get("selector"):
        return [{"matchLabels": spec["selector"]}]
    return []


def quantity(text: Any) -> int:
    """Bytes."""
    number, unit = re.fullmatch(r"(\d+)([KMG]i?|k)?", str(text)).groups()  # type: ignore[union-attr]
    factor = {"": 1, "k": 1000, "K": 1000, "M": 1000**2, "G": 1000**3, "Ki": 1024, "Mi": 1024**2, "Gi": 1024**3}
    return int(number) * factor[unit or ""]


def each_container(rendering: Rendering) -> Iterator[tuple[Pod, Mapping, str]]:
    for pod in rendering.pods:
        for container in pod.containers:
            yield pod, container, f"{pod.owner}, {container['name']}"


# --- keytabs and keys ---


@policy
def no_worker_has_a_private_secret(rendering: Rendering) -> Iterator[str]:
    """By a volume, projected or not, by a volume that a refresher shares with it, or by its environment."""
    private = rendering.private_secrets
    for pod in rendering.pods:
        private_volumes = pod.private_volumes | {
            name for name, volume in pod.volumes.items() if volume_secrets(volume) & private
        }
        for container in pod.workers:
            where = f"{pod.owner}, {container['name']}"
            for mount in [*mounts(container), *(container.get("volumeDevices") or [])]:
                if mount["name"] in private_volumes:
                    yield f"{where}: mounts {mount['name']}"
            for kind, name, _ in environment_references(container):
                if kind == "Secret" and name in private:
                    yield f"{where}: its environment has Secret {name}"


@policy
def refreshers_run_nothing_else(rendering: Rendering) -> Iterator[str]:
    """What has the refresher's image may have the keytab: a worker must not pass for one."""
    for pod in rendering.pods:
        for container in pod.refreshers:
            if container.get("command") or (container.get("args") or [""])[0] not in {"run", "once"}:
                yield f"{pod.owner}, {container['name']}: {container.get('command')} {container.get('args')}"


@policy
def no_worker_is_told_of_a_keytab(rendering: Rendering) -> Iterator[str]:
    """A variable that names one would be of use to nobody but a thief, or to libkrb5."""
    for pod in rendering.pods:
        for container in pod.workers:
            for variable in container.get("env") or []:
                nothing = variable["name"] == "KRB5_CLIENT_KTNAME" and variable.get("value") == "NONE:"
                if ANY_USERS_SECRET.search(variable["name"]) and not nothing:
                    yield f"{pod.owner}, {container['name']}: variable {variable['name']}"


@policy
def each_refresher_has_its_keytab_as_a_directory(rendering: Rendering) -> Iterator[str]:
    """With subPath a Secret that is rotated does not arrive."""
    for pod in rendering.pods:
        for container in pod.refreshers:
            where = f"{pod.owner}, {container['name']}"
            having = [each for each in mounts(container) if each["name"] in pod.private_volumes]
            if not having:
                yield f"{where}: no Secret is mounted"
            for mount in having:
                if "subPath" in mount or "subPathExpr" in mount:
                    yield f"{where}: {mount['name']} by subPath"
                if mount.get("readOnly") is not True:
                    yield f"{where}: {mount['name']} is not read-only"


@policy
def nothing_of_ours_is_mounted_by_sub_path(rendering: Rendering) -> Iterator[str]:
    """A token directory that is made anew, a krb5.conf and a public key that change would not arrive either."""
    for pod, container, where in each_container(rendering):
        ours = {mount["name"] for each in pod.refreshers for mount in mounts(each)}
        for mount in mounts(container):
            if mount["name"] in ours and ("subPath" in mount or "subPathExpr" in mount):
                yield f"{where}: {mount['name']} by subPath"


@policy
def private_secrets_are_mounted_for_their_owner_alone(rendering: Rendering) -> Iterator[str]:
    """Mode 0400 or 0440: the kubelet adds the group's bit where there is an fsGroup."""
    for pod in rendering.pods:
        for name in pod.private_volumes:
            volume = pod.volumes[name]
            source = volume.get("secret") or volume.get("projected") or {}
            sources = [source, *((each.get("secret") or {}) for each in source.get("sources") or [])]
            items = [item for each in sources for item in each.get("items") or []]
            modes = [source.get("defaultMode", 0o644), *(item["mode"] for item in items if "mode" in item)]
            for mode in modes:
                if mode & ~0o440:
                    yield f"{pod.owner}: volume {name} has mode {mode:04o}"


@policy
def key_material_stands_in_secrets_alone(rendering: Rendering) -> Iterator[str]:
    for document in rendering.documents:
        if document["kind"] == "Secret":
            continue
        text = json.dumps(document)
        if any(each in text for each in rendering.key_material):
            yield f"{title(document)} has key material in it"


# --- the token ---


@policy
def each_pod_has_a_refresher_and_a_worker(rendering: Rendering) -> Iterator[str]:
    for pod in rendering.pods:
        if not pod.refreshers:
            yield f"{pod.owner}: no refresher"
        if not any(not pod.is_refresher(each) for each in pod.spec["containers"]):
            yield f"{pod.owner}: no worker"


@policy
def tokens_are_in_memory_and_limited(rendering: Rendering) -> Iterator[str]:
    for pod in rendering.pods:
        for name in pod.token_volumes:
            directory = pod.volumes.get(name, {}).get("emptyDir")
            if not directory or directory.get("medium") != "Memory":
                yield f"{pod.owner}: volume {name} is not in memory"
            elif "sizeLimit" not in directory:
                yield f"{pod.owner}: volume {name} has no sizeLimit"
            elif quantity(directory["sizeLimit"]) > MOST_TOKENS:
                yield f"{pod.owner}: volume {name} may have {directory['sizeLimit']}"


@policy
def workers_read_tokens_and_do_not_write(rendering: Rendering) -> Iterator[str]:
    """What a refresher writes to is read-only to all others, and the pod's own containers get it."""
    for pod in rendering.pods:
        for container in pod.workers:
            where = f"{pod.owner}, {container['name']}"
            for mount in mounts(container):
                if mount["name"] in pod.token_volumes and mount.get("readOnly") is not True:
                    yield f"{where}: may write to {mount['name']}"
        reading = [each for each in pod.workers if pod.token_volumes & {mount["name"] for mount in mounts(each)}]
        if pod.refreshers and not reading:
            yield f"{pod.owner}: no worker has a token"


@policy
def refreshers_do_not_write_where_workers_do(rendering: Rendering) -> Iterator[str]:
    """One side of a shared volume at the most writes."""
    for pod in rendering.pods:
        for name in pod.volumes:
            writing = {
                pod.is_refresher(each)
                for each in pod.containers
                for mount in mounts(each)
                if mount["name"] == name and mount.get("readOnly") is not True
            }
            if writing == {True, False}:
                yield f"{pod.owner}: both sides may write to {name}"


@policy
def users_are_two_and_the_group_is_shared(rendering: Rendering) -> Iterator[str]:
    """What has one user id in a pod is one; fsGroup is what lets a worker read tokens."""
    for pod in rendering.pods:
        context = pod.spec.get("securityContext") or {}
        users = {pod.is_refresher(each): set() for each in pod.containers}  # type: dict[bool, set[Any]]
        for each in pod.containers:
            user = (each.get("securityContext") or {}).get("runAsUser", context.get("runAsUser"))
            users[pod.is_refresher(each)].add(user)
        shared = users.get(True, set()) & users.get(False, set()) - {None}
        if shared:
            yield f"{pod.owner}: user {shared} is on both sides"
        if None in users.get(True, set()):
            yield f"{pod.owner}: the refresher's user is its image's affair"
        if "fsGroup" not in context:
            yield f"{pod.owner}: no fsGroup"


# --- the restricted Pod Security Standard, and a read-only root ---


@policy
def pods_are_restricted(rendering: Rendering) -> Iterator[str]:
    for pod in rendering.pods:
        spec, context = pod.spec, pod.spec.get("securityContext") or {}
        for key in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
            if spec.get(key):
                yield f"{pod.owner}: {key}"
        if context.get("runAsUser") == 0:
            yield f"{pod.owner}: runAsUser 0"
        if context.get("sysctls"):
            yield f"{pod.owner}: sysctls"
        for key in ("windowsOptions", "seLinuxOptions"):
            if context.get(key):
                yield f"{pod.owner}: {key}"
        if (context.get("appArmorProfile") or {}).get("type", "RuntimeDefault") == "Unconfined":
            yield f"{pod.owner}: AppArmor is off"
        for name, volume in pod.volumes.items():
            for kind in set(volume) - {"name"} - VOLUME_TYPES:
                yield f"{pod.owner}: volume {name} is a {kind}"
        for key in pod.metadata.get("annotations") or {}:
            if key.startswith(("container.apparmor.security.beta.kubernetes.io/", "seccomp.security.alpha.")):
                yield f"{pod.owner}: annotation {key}"


@policy
def containers_are_restricted(rendering: Rendering) -> Iterator[str]:
    for pod, container, where in each_container(rendering):
        of_pod, own = pod.spec.get("securityContext") or {}, container.get("securityContext") or {}
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{where}: allowPrivilegeEscalation"
        if own.get("privileged"):
            yield f"{where}: privileged"
        capabilities = own.get("capabilities") or {}
        if "ALL" not in (capabilities.get("drop") or []) or capabilities.get("add"):
            yield f"{where}: capabilities {capabilities}"
        if own.get("runAsNonRoot", of_pod.get("runAsNonRoot")) is not True:
            yield f"{where}: runAsNonRoot"
        if own.get("runAsUser", of_pod.get("runAsUser", 1)) == 0:
            yield f"{where}: runAsUser 0"
        profile = own.get("seccompProfile", of_pod.get("seccompProfile")) or {}
        if profile.get("type") != "RuntimeDefault":
            yield f"{where}: seccomp profile {profile}"
        if own.get("procMount", "Default") != "Default":
            yield f"{where}: procMount"
        for key in ("seLinuxOptions", "windowsOptions"):
            if own.get(key):
                yield f"{where}: {key}"
        if (own.get("appArmorProfile") or {}).get("type", "RuntimeDefault") == "Unconfined":
            yield f"{where}: AppArmor is off"
        for port in container.get("ports") or []:
            if port.get("hostPort"):
                yield f"{where}: hostPort {port['hostPort']}"
        probes = [container.get(f"{each}Probe") or {} for each in ("startup", "liveness", "readiness")]
        hooks = [hook or {} for hook in (container.get("lifecycle") or {}).values() if isinstance(hook, dict)]
        for handler in [*probes, *hooks]:
            for kind in ("httpGet", "tcpSocket"):
                if (handler.get(kind) or {}).get("host"):
                    yield f"{where}: a probe of another host"


@policy
def roots_are_read_only(rendering: Rendering) -> Iterator[str]:
    for _, container, where in each_container(rendering):
        if (container.get("securityContext") or {}).get("readOnlyRootFilesystem") is not True:
            yield where


@policy
def no_pod_has_a_service_account_token(rendering: Rendering) -> Iterator[str]:
    for pod in rendering.pods:
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield pod.owner
        for name, volume in pod.volumes.items():
            if any("serviceAccountToken" in each for each in (volume.get("projected") or {}).get("sources") or []):
                yield f"{pod.owner}: volume {name}"


# --- that it works at all ---


@policy
def names_are_valid_and_short(rendering: Rendering) -> Iterator[str]:
    """63 characters, also where Kubernetes takes more: names end up in labels."""
    for document in rendering.documents:
        name = document["metadata"]["name"]
        if not LABEL.fullmatch(name):
            yield f"{document['kind']}: name {name!r}, {len(name)} characters"
        if document["kind"] == "CronJob" and len(name) > LONGEST_CRON_JOB:
            yield f"CronJob: name {name!r}, {len(name)} characters"
    for pod in rendering.pods:
        for what, names in (
            ("volume", [each["name"] for each in pod.spec.get("volumes") or []]),
            ("container", [each["name"] for each in pod.containers]),
            ("port", [port["name"] for each in pod.containers for port in each.get("ports") or [] if "name" in port]),
        ):
            for name, times in Counter(names).items():
                if times > 1:
                    yield f"{pod.owner}: {times} times {what} {name}"
                if not LABEL.fullmatch(name) or (what == "port" and len(name) > 15):
                    yield f"{pod.owner}: {what} {name!r}"


@policy
def labels_are_valid(rendering: Rendering) -> Iterator[str]:
    for document in rendering.documents:
        template = pod_template(document) or {}
        for metadata in (document["metadata"], template.get("metadata") or {}):
            for key, value in (metadata.get("labels") or {}).items():
                if not isinstance(value, str) or not LABEL_VALUE.fullmatch(value) or not LABEL_KEY.fullmatch(key):
                    yield f"{title(document)}: label {key}: {value!r}"
            for key, value in (metadata.get("annotations") or {}).items():
                if not isinstance(value, str) or not LABEL_KEY.fullmatch(key):
                    yield f"{title(document)}: annotation {key}: {value!r}"


@policy
def objects_are_there_once(rendering: Rendering) -> Iterator[str]:
    for identity, times in Counter(map(identity_of, rendering.documents)).items():
        if times > 1:
            yield f"{times} times {identity}"


@policy
def selectors_match_their_own_pods(rendering: Rendering) -> Iterator[str]:
    """A workload's its own pods and no other's; a monitor's or a network policy's at least one pod."""
    labels = {pod.owner: pod.metadata.get("labels") for pod in rendering.pods}
    for document in rendering.documents:
        for selector in selectors(document):
            matched = {owner for owner, each in labels.items() if matches(selector, each)}
            if document["kind"] in {"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"}:
                if matched != {title(document)}:
                    yield f"{title(document)}: its selector matches {sorted(matched) or 'nothing'}"
            elif not matched:
                yield f"{title(document)}: its selector matches nothing"
            if not selector.get("matchLabels") and not selector.get("matchExpressions"):
                yield f"{title(document)}: its selector matches everything"


@policy
def volumes_are_there_and_used(rendering: Rendering) -> Iterator[str]:
    for pod in rendering.pods:
        used = set()
        for container in pod.containers:
            where = f"{pod.owner}, {container['name']}"
            paths = [mount["mountPath"].rstrip("/") for mount in mounts(container)]
            for path, times in Counter(paths).items():
                if times > 1:
                    yield f"{where}: {times} volumes at {path}"
                if not path.startswith("/") or ":" in path:
                    yield f"{where}: path {path!r}"
            for mount in mounts(container):
                used.add(mount["name"])
                if mount["name"] not in pod.volumes:
                    yield f"{where}: volume {mount['name']} is not there"
        for name in set(pod.volumes) - used:
            yield f"{pod.owner}: nobody mounts volume {name}"


@policy
def what_is_referred_to_is_there(rendering: Rendering) -> Iterator[str]:
    """Secrets and ConfigMaps: rendered, with the key that is asked for, or named by who uses the manifests."""
    rendered = {
        (each["kind"], each["metadata"]["name"]): set(each.get("data") or {}) | set(each.get("stringData") or {})
        for each in rendering.of("Secret", "ConfigMap")
    }
    for pod in rendering.pods:
        wanted: list[tuple[str, Any, str | None]] = []
        for volume in pod.volumes.values():
            wanted += [("Secret", name, None) for name in volume_secrets(volume)]
            wanted += [("ConfigMap", name, None) for name in volume_config_maps(volume)]
            sources = [volume, *((volume.get("projected") or {}).get("sources") or [])]
            for source in sources:
                for word, kind in (("secret", "Secret"), ("configMap", "ConfigMap")):
                    reference = source.get(word) or {}
                    name = reference.get("secretName") or reference.get("name")
                    wanted += [(kind, name, item["key"]) for item in reference.get("items") or []]
        wanted += [each for container in pod.containers for each in environment_references(container)]
        wanted += [("Secret", each["name"], None) for each in pod.spec.get("imagePullSecrets") or []]
        for kind, name, key in wanted:
            if (kind, name) in rendered:
                if key is not None and key not in rendered[kind, name]:
                    yield f"{pod.owner}: {kind} {name} has no key {key}"
            elif not {name, (kind, name)} & rendering.outside:
                yield f"{pod.owner}: {kind} {name} is not there"


@policy
def probes_and_monitors_find_their_ports(rendering: Rendering) -> Iterator[str]:
    """By name: a port of the same container, and of the pods that a monitor selects and in which a refresher stays."""
    for _, container, where in each_container(rendering):
        names = {port.get("name") for port in container.get("ports") or []}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            port = ((container.get(probe) or {}).get("httpGet") or {}).get("port")
            if isinstance(port, str) and port not in names:
                yield f"{where}: {probe} asks port {port}"
    for monitor in rendering.of("PodMonitor"):
        for pod in rendering.pods:
            if not matches(monitor["spec"]["selector"], pod.metadata.get("labels")):
                continue
            if not any(map(pod.stays, pod.refreshers)):
                continue
            names = {port.get("name") for each in pod.containers for port in each.get("ports") or []}
            for endpoint in monitor["spec"]["podMetricsEndpoints"]:
                if "port" in endpoint and endpoint["port"] not in names:
                    yield f"{title(monitor)}: {pod.owner} has no port {endpoint['port']}"


@policy
def jobs_end(rendering: Rendering) -> Iterator[str]:
    """A refresher that stays beside a worker would keep a Job's pod for ever: it is a native sidecar, or is told of a
    file that the worker leaves. Before Kubernetes 1.29 there are no native ones."""
    for pod in rendering.pods:
        natives = [each for each in pod.spec.get("initContainers") or [] if each.get("restartPolicy") == "Always"]
        if natives and version(rendering.kubernetes) < (1, 29):
            yield f"{pod.owner}: a native sidecar on Kubernetes {rendering.kubernetes}"
        for each in pod.spec.get("initContainers") or []:
            if pod.is_refresher(each) and each not in natives and pod.stays(each):
                yield f"{pod.owner}, {each['name']}: an init container that does not end"
        if pod.kind not in {"Job", "CronJob", "Pod"}:
            continue
        if pod.spec.get("restartPolicy") not in {"Never", "OnFailure"}:
            yield f"{pod.owner}: restartPolicy {pod.spec.get('restartPolicy')}"
        for each in pod.spec["containers"]:
            if pod.is_refresher(each):
                yield from stop_file_problems(pod, each)


def stop_file_problems(pod: Pod, refresher: Mapping) -> Iterator[str]:
    where = f"{pod.owner}, {refresher['name']}"
    path = environment(refresher).get("KRBREFRESH__REFRESHER__STOP_PATH")
    if not path:
        yield f"{where}: nothing ends it"
        return
    directory = path.rpartition("/")[0]
    reading = [mount for mount in mounts(refresher) if mount["mountPath"] == directory]
    if not reading or reading[0].get("readOnly") is not True:
        yield f"{where}: no read-only volume at {directory}"
        return
    writing = [
        (each, f"{mount['mountPath']}/{path.rpartition('/')[2]}")
        for each in pod.spec["containers"]
        if not pod.is_refresher(each)
        for mount in mounts(each)
        if mount["name"] == reading[0]["name"] and not mount.get("readOnly", False)
    ]
    if not writing:
        yield f"{where}: nobody can write {path}"
    elif not any(
        file in text for each, file in writing for text in (each.get("command") or []) + (each.get("args") or [])
    ):
        yield f"{where}: nobody writes {path}"


def environment(container: Mapping) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container.get("env") or [] if "value" in each}


def version(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(".")[:2])


@policy
def sidecars_are_probed_and_limited(rendering: Rendering) -> Iterator[str]:
    """What stays has probes; a native one holds the workers back until there is a token. All have limits."""
    for pod in rendering.pods:
        for each in pod.refreshers:
            where = f"{pod.owner}, {each['name']}"
            native = each.get("restartPolicy") == "Always"
            wanted = ["livenessProbe", "readinessProbe"] if pod.stays(each) else []
            for probe in [*wanted, *(["startupProbe"] if native else [])]:
                if not each.get(probe):
                    yield f"{where}: no {probe}"
            resources = each.get("resources") or {}
            if "memory" not in (resources.get("limits") or {}):
                yield f"{where}: no limit of memory"
            if not {"cpu", "memory"} <= set(resources.get("requests") or {}):
                yield f"{where}: requests {resources.get('requests')}"


@policy
def images_are_named_exactly(rendering: Rendering) -> Iterator[str]:
    for pod in rendering.pods:
        for each in pod.refreshers:
            name, _, tag = each["image"].rpartition("/")[2].partition(":")
            if "@sha256:" not in each["image"] and (not tag or tag == "latest"):
                yield f"{pod.owner}, {each['name']}: image {each['image']}"
            assert name


# --- two of them ---


def identity_of(document: Mapping) -> tuple[str, str, str, str]:
    metadata = document["metadata"]
    group = document["apiVersion"].rpartition("/")[0]
    return group, document["kind"], metadata.get("namespace", ""), metadata["name"]


def collisions(one: Rendering, other: Rendering) -> Iterator[str]:
    """Between two that are installed into one namespace: objects of the same name, and selectors that match the other's
    pods."""
    for identity in {*map(identity_of, one.documents)} & {*map(identity_of, other.documents)}:
        yield f"both have {identity[1]} {identity[3]}"
    for mine, theirs in ((one, other), (other, one)):
        for document in mine.documents:
            for selector in selectors(document):
                for pod in theirs.pods:
                    if matches(selector, pod.metadata.get("labels")):
                        yield f"the selector of {title(document)} matches {pod.owner} of the other"
