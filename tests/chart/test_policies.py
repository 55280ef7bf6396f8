"""Each policy notices what it is there for: docs/kubernetes/ breaks none, and each of these changes breaks one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.manifests import REPOSITORY, Judge, NotYamlError
from tests.policies import POLICIES, Rendering, broken, collisions, pod_template

Mapping = dict[str, Any]
Change = Callable[[Mapping], None]

OUTSIDE = frozenset({"etl-keytab"})
CASES: list[tuple[str, str, Change]] = []


@pytest.fixture(scope="module")
def documents(judge: Judge) -> dict[str, Mapping]:
    """By the names of their files."""
    found = {}
    for path in sorted((REPOSITORY / "docs" / "kubernetes").glob("*.yaml")):
        (found[path.stem],) = judge.load(path.read_text())
    return found


def rendering(documents: dict[str, Mapping], **options: Any) -> Rendering:
    return Rendering(list(documents.values()), **{"outside": OUTSIDE, "kubernetes": "1.29", **options})


def breaks(policy: str) -> Callable[[Change], Change]:
    """Marks a change of the manifests, by name, that breaks a policy."""

    def add(change: Change) -> Change:
        CASES.append((policy, change.__name__, change))
        return change

    return add


def pod(document: Mapping) -> Mapping:
    template = pod_template(document)
    assert template
    return template["spec"]  # type: ignore[no-any-return]


def container(document: Mapping, name: str) -> Mapping:
    spec = pod(document)
    (found,) = (each for each in [*spec.get("initContainers", []), *spec["containers"]] if each["name"] == name)
    return found  # type: ignore[no-any-return]


def worker(documents: Mapping) -> Mapping:
    return container(documents["deployment"], "worker")


def refresher(documents: Mapping) -> Mapping:
    return container(documents["deployment"], "refresher")


def mount(container: Mapping, name: str) -> Mapping:
    (found,) = (each for each in container["volumeMounts"] if each["name"] == name)
    return found  # type: ignore[no-any-return]


def volume(documents: Mapping, name: str) -> Mapping:
    (found,) = (each for each in pod(documents["deployment"])["volumes"] if each["name"] == name)
    return found  # type: ignore[no-any-return]


# --- keytabs and keys ---


@breaks("no_worker_has_a_private_secret")
def the_keytabs_volume(documents: Mapping) -> None:
    worker(documents)["volumeMounts"].append({"name": "keytab", "mountPath": "/keytab", "readOnly": True})


@breaks("no_worker_has_a_private_secret")
def one_file_of_the_keytabs_volume(documents: Mapping) -> None:
    worker(documents)["volumeMounts"].append({"name": "keytab", "mountPath": "/k", "subPath": "etl.keytab"})


@breaks("no_worker_has_a_private_secret")
def a_second_volume_of_the_same_secret(documents: Mapping) -> None:
    pod(documents["deployment"])["volumes"].append({"name": "again", "secret": {"secretName": "etl-keytab"}})
    worker(documents)["volumeMounts"].append({"name": "again", "mountPath": "/keytab"})


@breaks("no_worker_has_a_private_secret")
def the_secret_projected(documents: Mapping) -> None:
    sources = [{"configMap": {"name": "krb5-conf"}}, {"secret": {"name": "etl-keytab"}}]
    pod(documents["deployment"])["volumes"].append({"name": "all", "projected": {"sources": sources}})
    worker(documents)["volumeMounts"].append({"name": "all", "mountPath": "/all"})


@breaks("no_worker_has_a_private_secret")
def the_secret_in_a_variable(documents: Mapping) -> None:
    source = {"secretKeyRef": {"name": "etl-keytab", "key": "etl.keytab"}}
    worker(documents)["env"].append({"name": "IT", "valueFrom": source})


@breaks("no_worker_has_a_private_secret")
def the_secret_in_the_environment(documents: Mapping) -> None:
    worker(documents)["envFrom"] = [{"secretRef": {"name": "etl-keytab"}}]


@breaks("no_worker_has_a_private_secret")
def an_init_container_with_the_keytab(documents: Mapping) -> None:
    first = copy.deepcopy(worker(documents))
    first["name"] = "first"
    first["volumeMounts"].append({"name": "keytab", "mountPath": "/keytab"})
    pod(documents["deployment"])["initContainers"].insert(0, first)


@breaks("no_worker_has_a_private_secret")
def another_pods_keytab(documents: Mapping) -> None:
    """A pod that has it by a volume of its own."""
    spec = pod(documents["job-stop-file"])
    del spec["containers"][1]
    container(documents["job-stop-file"], "worker")["volumeMounts"].append({"name": "keytab", "mountPath": "/keytab"})


@breaks("no_worker_has_a_private_secret")
def a_secret_of_the_refreshers_environment(documents: Mapping) -> None:
    for each in (refresher(documents), worker(documents)):
        each["envFrom"] = [{"secretRef": {"name": "both"}}]


@breaks("refreshers_run_nothing_else")
def a_worker_in_the_refreshers_image(documents: Mapping) -> None:
    worker(documents)["image"] = refresher(documents)["image"]


@breaks("refreshers_run_nothing_else")
def a_refresher_with_a_command(documents: Mapping) -> None:
    refresher(documents)["command"] = ["python3", "-c", "..."]


@breaks("no_worker_is_told_of_a_keytab")
def a_variable_for_libkrb5(documents: Mapping) -> None:
    worker(documents)["env"].append({"name": "KRB5_CLIENT_KTNAME", "value": "/run/secrets/keytab/etl.keytab"})


@breaks("no_worker_is_told_of_a_keytab")
def the_refreshers_setting(documents: Mapping) -> None:
    worker(documents)["env"].append({"name": "KRBREFRESH__KERBEROS__KEYTAB", "value": "/x"})


@breaks("each_refresher_has_its_keytab_as_a_directory")
def the_keytab_by_sub_path(documents: Mapping) -> None:
    mount(refresher(documents), "keytab").update(mountPath="/etc/etl.keytab", subPath="etl.keytab")


@breaks("each_refresher_has_its_keytab_as_a_directory")
def a_keytab_that_can_be_written(documents: Mapping) -> None:
    del mount(refresher(documents), "keytab")["readOnly"]


@breaks("each_refresher_has_its_keytab_as_a_directory")
def no_keytab(documents: Mapping) -> None:
    refresher(documents)["volumeMounts"].remove(mount(refresher(documents), "keytab"))


@breaks("nothing_of_ours_is_mounted_by_sub_path")
def krb5_conf_by_sub_path(documents: Mapping) -> None:
    mount(worker(documents), "krb5-conf").update(mountPath="/etc/krb5.conf", subPath="krb5.conf")


@breaks("private_secrets_are_mounted_for_their_owner_alone")
def a_keytab_for_everybody(documents: Mapping) -> None:
    volume(documents, "keytab")["secret"]["defaultMode"] = 0o444


@breaks("private_secrets_are_mounted_for_their_owner_alone")
def the_default_mode(documents: Mapping) -> None:
    del volume(documents, "keytab")["secret"]["defaultMode"]


@breaks("private_secrets_are_mounted_for_their_owner_alone")
def an_items_mode(documents: Mapping) -> None:
    volume(documents, "keytab")["secret"]["items"] = [{"key": "etl.keytab", "path": "etl.keytab", "mode": 0o644}]


@breaks("key_material_stands_in_secrets_alone")
def a_keytab_in_a_config_map(documents: Mapping) -> None:
    documents["krb5-conf"]["data"]["etl.keytab"] = "BQIAAAA5"


# --- the token ---


@breaks("each_pod_has_a_refresher_and_a_worker")
def no_refresher(documents: Mapping) -> None:
    del pod(documents["deployment"])["initContainers"]


@breaks("tokens_are_in_memory_and_limited")
def tokens_on_disk(documents: Mapping) -> None:
    del volume(documents, "token")["emptyDir"]["medium"]


@breaks("tokens_are_in_memory_and_limited")
def no_limit(documents: Mapping) -> None:
    del volume(documents, "token")["emptyDir"]["sizeLimit"]


@breaks("tokens_are_in_memory_and_limited")
def a_limit_of_a_gigabyte(documents: Mapping) -> None:
    volume(documents, "token")["emptyDir"]["sizeLimit"] = "1Gi"


@breaks("workers_read_tokens_and_do_not_write")
def a_worker_that_may_write(documents: Mapping) -> None:
    del mount(worker(documents), "token")["readOnly"]


@breaks("workers_read_tokens_and_do_not_write")
def a_worker_that_may_write_by_a_string(documents: Mapping) -> None:
    mount(worker(documents), "token")["readOnly"] = "true"


@breaks("workers_read_tokens_and_do_not_write")
def a_worker_without_a_token(documents: Mapping) -> None:
    worker(documents)["volumeMounts"].remove(mount(worker(documents), "token"))


@breaks("refreshers_do_not_write_where_workers_do")
def a_stop_file_that_both_may_write(documents: Mapping) -> None:
    del mount(container(documents["job-stop-file"], "refresher"), "stop")["readOnly"]


@breaks("users_are_two_and_the_group_is_shared")
def one_user(documents: Mapping) -> None:
    worker(documents)["securityContext"]["runAsUser"] = refresher(documents)["securityContext"]["runAsUser"]


@breaks("users_are_two_and_the_group_is_shared")
def one_user_by_the_pod(documents: Mapping) -> None:
    pod(documents["deployment"])["securityContext"]["runAsUser"] = 10001
    del worker(documents)["securityContext"]["runAsUser"]


@breaks("users_are_two_and_the_group_is_shared")
def no_group(documents: Mapping) -> None:
    del pod(documents["deployment"])["securityContext"]["fsGroup"]


# --- restricted ---


def pod_setting(name: str, key: str, value: Any) -> None:
    def change(documents: Mapping) -> None:
        pod(documents["deployment"])[key] = value

    CASES.append(("pods_are_restricted", name, change))


def container_setting(name: str, key: str, value: Any) -> None:
    def change(documents: Mapping) -> None:
        worker(documents)["securityContext"][key] = value

    CASES.append(("containers_are_restricted", name, change))


for _key in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
    pod_setting(_key, _key, True)
pod_setting("root, by the pod", "securityContext", {"runAsUser": 0})
pod_setting("sysctls", "securityContext", {"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}]})
pod_setting("a pod's SELinux options", "securityContext", {"seLinuxOptions": {"type": "spc_t"}})
pod_setting("AppArmor", "securityContext", {"appArmorProfile": {"type": "Unconfined"}})
container_setting("escalation", "allowPrivilegeEscalation", True)
container_setting("privileged", "privileged", True)
container_setting("capabilities that stay", "capabilities", {"drop": ["NET_RAW"]})
container_setting("capabilities that are added", "capabilities", {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]})
container_setting("root is allowed", "runAsNonRoot", False)
container_setting("root", "runAsUser", 0)
container_setting("seccomp", "seccompProfile", {"type": "Unconfined"})
container_setting("procMount", "procMount", "Unmasked")
container_setting("SELinux", "seLinuxOptions", {"user": "system_u"})
container_setting("a container's AppArmor", "appArmorProfile", {"type": "Unconfined"})


@breaks("pods_are_restricted")
def a_path_of_the_hosts(documents: Mapping) -> None:
    volume(documents, "krb5-conf").pop("configMap")
    volume(documents, "krb5-conf")["hostPath"] = {"path": "/etc"}


@breaks("pods_are_restricted")
def an_annotation_for_apparmor(documents: Mapping) -> None:
    documents["deployment"]["spec"]["template"]["metadata"]["annotations"] = {
        "container.apparmor.security.beta.kubernetes.io/worker": "unconfined"
    }


@breaks("containers_are_restricted")
def nobody_says_non_root(documents: Mapping) -> None:
    del pod(documents["deployment"])["securityContext"]["runAsNonRoot"]


@breaks("containers_are_restricted")
def nobody_says_seccomp(documents: Mapping) -> None:
    del pod(documents["deployment"])["securityContext"]["seccompProfile"]


@breaks("containers_are_restricted")
def no_security_context(documents: Mapping) -> None:
    del container(documents["job-stop-file"], "worker")["securityContext"]


@breaks("containers_are_restricted")
def a_port_of_the_hosts(documents: Mapping) -> None:
    refresher(documents)["ports"][0]["hostPort"] = 9464


@breaks("containers_are_restricted")
def a_probe_of_another_host(documents: Mapping) -> None:
    refresher(documents)["livenessProbe"]["httpGet"]["host"] = "169.254.169.254"


@breaks("roots_are_read_only")
def a_root_that_can_be_written(documents: Mapping) -> None:
    worker(documents)["securityContext"]["readOnlyRootFilesystem"] = False


@breaks("no_pod_has_a_service_account_token")
def a_token_for_the_api(documents: Mapping) -> None:
    del pod(documents["deployment"])["automountServiceAccountToken"]


@breaks("no_pod_has_a_service_account_token")
def a_token_that_is_projected(documents: Mapping) -> None:
    sources = [{"serviceAccountToken": {"path": "token"}}]
    pod(documents["deployment"])["volumes"].append({"name": "api", "projected": {"sources": sources}})


# --- that it works at all ---


@breaks("names_are_valid_and_short")
def a_name_of_64_characters(documents: Mapping) -> None:
    documents["deployment"]["metadata"]["name"] = "e" * 64


@breaks("names_are_valid_and_short")
def a_name_that_was_cut_at_a_hyphen(documents: Mapping) -> None:
    documents["krb5-conf"]["metadata"]["name"] = "krb5-"


@breaks("names_are_valid_and_short")
def a_cron_job_of_53_characters(documents: Mapping) -> None:
    job = documents["job-stop-file"]
    documents["cron"] = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": "c" * 53},
        "spec": {"schedule": "@daily", "jobTemplate": {"spec": copy.deepcopy(job["spec"])}},
    }


@breaks("names_are_valid_and_short")
def a_port_of_16_characters(documents: Mapping) -> None:
    refresher(documents)["ports"][0]["name"] = "krbrefresh-metri"


@breaks("names_are_valid_and_short")
def two_containers_of_one_name(documents: Mapping) -> None:
    pod(documents["deployment"])["containers"].append(copy.deepcopy(worker(documents)))


@breaks("labels_are_valid")
def a_label_that_is_a_number(documents: Mapping) -> None:
    documents["deployment"]["metadata"]["labels"]["app.kubernetes.io/version"] = 1.0


@breaks("labels_are_valid")
def a_label_of_a_version_with_a_plus(documents: Mapping) -> None:
    documents["deployment"]["metadata"]["labels"]["helm.sh/chart"] = "krbrefresh-0.1.0+1"


@breaks("objects_are_there_once")
def an_object_twice(documents: Mapping) -> None:
    documents["again"] = copy.deepcopy(documents["krb5-conf"])


@breaks("selectors_match_their_own_pods")
def a_selector_of_nothing(documents: Mapping) -> None:
    documents["deployment"]["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"] = "other"


@breaks("selectors_match_their_own_pods")
def a_selector_of_a_jobs_pods(documents: Mapping) -> None:
    labels = documents["job-stop-file"]["spec"]["template"]["metadata"]["labels"]
    labels.update(documents["deployment"]["spec"]["selector"]["matchLabels"])


@breaks("selectors_match_their_own_pods")
def a_monitor_of_everything(documents: Mapping) -> None:
    documents["podmonitor"]["spec"]["selector"] = {}


@breaks("volumes_are_there_and_used")
def a_volume_that_is_not_there(documents: Mapping) -> None:
    pod(documents["deployment"])["volumes"].remove(volume(documents, "krb5-conf"))


@breaks("volumes_are_there_and_used")
def a_volume_that_nobody_mounts(documents: Mapping) -> None:
    pod(documents["deployment"])["volumes"].append({"name": "spare", "emptyDir": {}})


@breaks("volumes_are_there_and_used")
def two_volumes_at_one_path(documents: Mapping) -> None:
    mount(worker(documents), "krb5-conf")["mountPath"] = "/run/krbrefresh/"


@breaks("what_is_referred_to_is_there")
def a_secret_that_nobody_named(documents: Mapping) -> None:
    volume(documents, "keytab")["secret"]["secretName"] = "etl"


@breaks("what_is_referred_to_is_there")
def a_key_that_the_config_map_has_not(documents: Mapping) -> None:
    volume(documents, "krb5-conf")["configMap"]["items"] = [{"key": "krb5.cnf", "path": "krb5.conf"}]


@breaks("what_is_referred_to_is_there")
def a_pull_secret_that_nobody_named(documents: Mapping) -> None:
    pod(documents["deployment"])["imagePullSecrets"] = [{"name": "registry"}]


@breaks("probes_and_monitors_find_their_ports")
def a_probe_of_no_port(documents: Mapping) -> None:
    refresher(documents)["livenessProbe"]["httpGet"]["port"] = "metrics"


@breaks("probes_and_monitors_find_their_ports")
def a_monitor_of_no_port(documents: Mapping) -> None:
    documents["podmonitor"]["spec"]["podMetricsEndpoints"][0]["port"] = "metrics"


@breaks("jobs_end")
def no_stop_file(documents: Mapping) -> None:
    env = container(documents["job-stop-file"], "refresher")["env"]
    env.remove(next(each for each in env if each["name"].endswith("STOP_PATH")))


@breaks("jobs_end")
def a_stop_file_that_the_worker_cannot_write(documents: Mapping) -> None:
    mount(container(documents["job-stop-file"], "worker"), "stop")["readOnly"] = True


@breaks("jobs_end")
def a_stop_file_elsewhere(documents: Mapping) -> None:
    mount(container(documents["job-stop-file"], "refresher"), "stop")["mountPath"] = "/run/end"


@breaks("jobs_end")
def a_worker_that_does_not_leave_the_stop_file(documents: Mapping) -> None:
    each = container(documents["job-stop-file"], "worker")
    each["args"] = [text.replace("/run/stop/done", "/run/stop/over") for text in each["args"]]


@breaks("jobs_end")
def an_init_container_that_stays(documents: Mapping) -> None:
    del refresher(documents)["restartPolicy"]


@breaks("jobs_end")
def a_job_that_starts_again(documents: Mapping) -> None:
    pod(documents["job-stop-file"])["restartPolicy"] = "Always"


@breaks("sidecars_are_probed_and_limited")
def no_startup_probe(documents: Mapping) -> None:
    del refresher(documents)["startupProbe"]


@breaks("sidecars_are_probed_and_limited")
def no_liveness_probe(documents: Mapping) -> None:
    del container(documents["job-stop-file"], "refresher")["livenessProbe"]


@breaks("sidecars_are_probed_and_limited")
def no_limit_of_memory(documents: Mapping) -> None:
    del refresher(documents)["resources"]["limits"]


@breaks("images_are_named_exactly")
def the_latest_image(documents: Mapping) -> None:
    refresher(documents)["image"] = "registry.example.com:5000/krbrefresh-refresher:latest"


# --- the tests ---


def test_the_manifests_of_the_documentation_break_none(documents: dict[str, Mapping]) -> None:
    assert broken(rendering(documents)) == []


@pytest.mark.parametrize(("name", "change"), [(name, change) for name, _, change in CASES], ids=[e[1] for e in CASES])
def test_what_breaks_a_policy_is_noticed(documents: dict[str, Mapping], name: str, change: Change) -> None:
    changed = copy.deepcopy(documents)
    change(changed)
    assert broken(rendering(changed, key_material=("BQIAAAA5",), private=OUTSIDE), name)


def test_each_policy_has_something_that_breaks_it() -> None:
    assert {name for name, _, _ in CASES} == set(POLICIES)


def test_a_native_sidecar_before_there_were_any_is_noticed(documents: dict[str, Mapping]) -> None:
    assert broken(rendering(documents, kubernetes="1.28"), "jobs_end")


def test_two_that_are_the_same_collide(documents: dict[str, Mapping]) -> None:
    one, other = rendering(documents), rendering(copy.deepcopy(documents))
    assert "both have Deployment etl" in list(collisions(one, other))
    for document in other.documents:
        document["metadata"]["name"] += "-2"
    other = Rendering(other.documents)
    assert list(collisions(one, other)) == [
        "the selector of Deployment etl matches Deployment etl-2 of the other",
        "the selector of PodMonitor krbrefresh matches Deployment etl-2 of the other",
        "the selector of PodMonitor krbrefresh matches Job etl-job-2 of the other",
        "the selector of Deployment etl-2 matches Deployment etl of the other",
        "the selector of PodMonitor krbrefresh-2 matches Deployment etl of the other",
        "the selector of PodMonitor krbrefresh-2 matches Job etl-job of the other",
    ]


def test_a_key_that_is_there_twice_is_no_yaml(judge: Judge) -> None:
    with pytest.raises(NotYamlError, match="'env' is there twice"):
        judge.load("env: []\nname: worker\nenv: []\n")


def test_keys_that_the_schemas_do_not_know_are_faults(documents: dict[str, Mapping], judge: Judge) -> None:
    changed = copy.deepcopy(documents)
    refresher(changed)["securityContext"]["readonlyRootFilesystem"] = True
    changed["podmonitor"]["spec"]["podMetricsEndpoints"][0]["pathh"] = "/metrics"
    changed["krb5-conf"]["kind"] = "ConfigMapp"
    faults = "\n".join(map(str, judge.faults(list(changed.values()), ["1.29"])))
    assert "'readonlyRootFilesystem' was unexpected" in faults
    assert "'pathh' was unexpected" in faults
    assert "no schema is known for v1 ConfigMapp" in faults
