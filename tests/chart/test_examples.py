"""docs/kubernetes.md and what it names: every block and every file is rendered by the real Helm and judged, by the
schemas and the policies, as the chart itself is.

Pods that an operator, Spark or Airflow's chart makes are put together here as those make them.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chart.helm import CHART, KUBERNETES, ROOT, helm, template
from tests.chart.values import EXAMPLES as ALL
from tests.chart.values import with_values
from tests.manifests import Judge
from tests.policies import Rendering, broken, environment, mounts, title

Mapping = dict[str, Any]

PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
EXAMPLES = ROOT / "docs" / "kubernetes"
CHARTS = ("celery", "dask", "spark")
BEFORE_NATIVE, NEWEST = "1.28", "1.34"
# Airflow's own containers break these: they write below their root, and talk to the cluster.
AIRFLOWS = ("roots_are_read_only", "no_pod_has_a_service_account_token")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Those of the page, each as its words."""
    return [
        shlex.split(line) for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines() if line.strip()
    ]


def created() -> dict[tuple[str, str], set[str]]:
    """By kind and name, the keys of what the page's `kubectl create` makes."""
    found: dict[tuple[str, str], set[str]] = {}
    for words in commands():
        if words[:3] == ["kubectl", "create", "secret"]:
            kind, name, files = "Secret", words[4], words[5:]
        elif words[:3] == ["kubectl", "create", "configmap"]:
            kind, name, files = "ConfigMap", words[3], words[4:]
        else:
            continue
        given = [file.removeprefix("--from-file=").rpartition("/")[2].partition("=")[0] for file in files]
        found.setdefault((kind, name), set()).update(given)
    return found


OUTSIDE = frozenset({"audit-keytab", *(name for _, name in created())})


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The charts as they lie in the repository, with their dependencies, which the page's command brings."""
    root = tmp_path_factory.mktemp("tree")
    shutil.copytree(CHART, root / "charts" / "krbrefresh")
    ignored = shutil.ignore_patterns("charts", "Chart.lock")
    shutil.copytree(EXAMPLES, root / "docs" / "kubernetes", ignore=ignored)
    for name in CHARTS:
        assert ["helm", "dependency", "update", f"docs/kubernetes/{name}"] in commands()
        helm("dependency", "update", root / "docs" / "kubernetes" / name)
    return root


# --- pods that others make ---


def pods(document: Mapping, judge: Judge) -> Iterator[Mapping]:
    """What becomes of a custom resource, or of a template in a ConfigMap."""
    if document["kind"] == "DaskCluster":
        worker = document["spec"]["worker"]
        labels = {**worker["metadata"]["labels"], "dask.org/component": "worker"}
        metadata = {"name": "dask-worker", "labels": labels, "annotations": worker["metadata"]["annotations"]}
        yield {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": metadata, "spec": worker["spec"]}},
        }
    elif document["kind"] == "SparkApplication":
        for role in ("driver", "executor"):
            yield spark_pod(role, document["spec"][role]["template"])
    elif document["kind"] == "ConfigMap":
        for file, text in document["data"].items():
            if file in {"driver.yaml", "executor.yaml"}:
                (made,) = judge.load(text)
                yield spark_pod(file.removesuffix(".yaml"), made)


def spark_pod(role: str, given: Mapping) -> Mapping:
    return {
        **given,
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**given["metadata"], "name": f"spark-{role}"},
        "spec": {**given["spec"], "restartPolicy": "Never"},
    }


def problems(documents: list[Mapping], judge: Judge, kubernetes: str, *waived: str) -> list[str]:
    """With what others make of them."""
    every = [*documents, *(pod for each in documents for pod in pods(each, judge))]
    custom = {"DaskCluster", "SparkApplication"}  # no schema is here for them
    known = [each for each in every if each["kind"] not in custom]
    said = broken(Rendering(known, kubernetes=kubernetes, outside=OUTSIDE, private=frozenset({"etl-signing"})))
    assert any(pod.refreshers for pod in Rendering(known).pods), "nothing to judge"
    return [
        *map(str, judge.faults(known, [kubernetes])),
        *(each for each in said if not each.startswith(tuple(f"{name}:" for name in waived))),
    ]


# --- the page ---


def test_each_command_is_of_a_kind_that_is_looked_at() -> None:
    known = ("kubectl create", "kubectl apply", "kubectl get", "kubectl logs", "helm install", "helm template")
    known += ("helm test", "helm dependency", "krbrefresh keygen", "spark-submit")
    for words in commands():
        assert " ".join(words).startswith(known), words


@pytest.mark.parametrize(
    "words", [each for each in commands() if each[:2] == ["helm", "install"]], ids=lambda words: " ".join(words[2:4])
)
def test_what_the_page_installs_is_valid_and_breaks_no_policy(words: list[str], tree: Path, judge: Judge) -> None:
    _, _, release, chart, *options = words
    if chart == "apache-airflow/airflow":
        assert options == ["--values", "docs/kubernetes/airflow/airflow-values.yaml"]
        return
    options = [str(tree / each) if each.startswith("docs/") else each for each in options]
    if chart == "charts/krbrefresh" and "examples.deployment.enabled=true" not in options:
        options += ["--set", "examples.deployment.enabled=true"]  # a pod to judge
    documents = judge.load(helm("template", release, tree / chart, *options, "--kube-version", f"{NEWEST}.0"))
    waived = ["no_pod_has_a_service_account_token"] if chart.endswith("/spark") else []
    assert not problems(documents, judge, NEWEST, *waived)


def test_secrets_and_config_maps_are_made_with_the_keys_that_pods_ask_for() -> None:
    made = created()
    values = with_values(ALL)
    assert "kerberos.keytab" in made["Secret", values["keytab"]["existingSecret"]]
    assert "kerberos.keytab" in made["Secret", "airflow-keytab"]
    assert "etl.keytab" in made["Secret", "etl-keytab"]  # the plain manifests'
    assert made["ConfigMap", "krb5-conf"] == {"krb5.conf"}
    # keygen's second file has .pub at its end; the chart's defaults are these.
    assert ["krbrefresh", "keygen", "signing.pem"] in commands()
    assert made["Secret", "etl-signing"] == {"signing.pem"}
    assert made["ConfigMap", "etl-signing-public"] == {"signing.pem.pub"}


def test_the_logs_and_the_pods_that_the_page_asks_for_are_there(tree: Path, judge: Judge) -> None:
    (install,) = (words for words in commands() if words[:4] == ["helm", "install", "etl", "charts/krbrefresh"])
    chart = tree / "charts" / "krbrefresh"
    documents = judge.load(helm("template", "etl", chart, *install[4:], "--kube-version", KUBERNETES))
    assert ["kubectl", "logs", "deployment/etl-krbrefresh-worker"] in commands()
    assert "Deployment etl-krbrefresh-worker" in map(title, documents)
    assert "`kubectl logs etl-krbrefresh-test -c krbrefresh-once`" in PAGE
    (test,) = (each for each in documents if title(each) == "Pod etl-krbrefresh-test")
    assert [each["name"] for each in test["spec"]["initContainers"]] == ["krbrefresh-once"]


def snippets() -> dict[str, str]:
    """By what the first line says that it is."""
    return {block.partition("\n")[0].removeprefix("# "): block for block in blocks("yaml")}


@pytest.mark.parametrize("kubernetes", [BEFORE_NATIVE, NEWEST])
def test_the_snippets_are_one_chart(tmp_path: Path, judge: Judge, kubernetes: str) -> None:
    shutil.copytree(CHART, tmp_path / "krbrefresh")
    chart = tmp_path / "etl"
    for name in ("Chart.yaml", "values.yaml", "templates/deployment.yaml"):
        (chart / name).parent.mkdir(parents=True, exist_ok=True)
        (chart / name).write_text(snippets()[name])
    helm("dependency", "update", chart)
    documents = judge.load(template({}, chart=chart, kube_version=f"{kubernetes}.0"))
    assert "Deployment etl" in map(title, documents)
    assert not problems(documents, judge, kubernetes)


@pytest.mark.parametrize("name", [each for each in snippets() if each.startswith("values: ")])
def test_each_snippet_of_values_may_be_added(name: str, judge: Judge) -> None:
    (added,) = judge.load(snippets()[name])
    with_them = judge.load(template(with_values(ALL, added), kube_version=f"{NEWEST}.0"))
    assert not problems(with_them, judge, NEWEST)
    assert with_them != judge.load(template(with_values(ALL), kube_version=f"{NEWEST}.0"))


def test_workers_that_check_signatures_have_a_place_for_their_verified_copy(judge: Judge) -> None:
    (added,) = judge.load(snippets()["values: tokens are signed, and workers get the public key"])
    rendering = Rendering(judge.load(template(with_values(ALL, added), kube_version=f"{NEWEST}.0")))
    workers = [(pod, each) for pod in rendering.pods for each in pod.workers]
    assert len(workers) == 4
    for pod, worker in workers:
        assert "--public-key" in worker["command"]
        (volume,) = (mount["name"] for mount in mounts(worker) if mount["mountPath"] == "/tmp")
        assert pod.volumes[volume]["emptyDir"]["medium"] == "Memory"


def test_every_snippet_says_what_it_is() -> None:
    assert len(snippets()) == len(blocks("yaml"))
    chart = {"Chart.yaml", "values.yaml", "templates/deployment.yaml"}
    assert all(each in chart or each.startswith("values: ") for each in snippets())


def test_the_page_names_templates_values_and_files_that_are_there(tree: Path, judge: Judge) -> None:
    templates = "".join(path.read_text() for path in CHART.rglob("*.tpl"))
    for name in re.findall(r"`(?:include \")?(krbrefresh\.[a-zA-Z]+)[`\"]", PAGE):
        if name != "krbrefresh.hooks":
            assert f'define "{name}"' in templates, name
    (values,) = judge.load((CHART / "values.yaml").read_text())
    for path in ("keytab.existingSecret", "sidecar.mode", "oneShot.lifetime", "probes.handler", "users.refresher"):
        assert f"`{path}" in PAGE
        section, key = path.split(".")
        assert key in values[section]
    for target in re.findall(r"\]\(((?!https?:|#)[^)#]+)(?:#[^)]*)?\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
    headings = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in headings}
    for anchor in re.findall(r"\]\(#([^)]+)\)", PAGE):
        assert anchor in anchors, anchor


# --- the files ---


def test_there_is_no_example_that_is_not_looked_at() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_dir()} == {"airflow", *CHARTS}
    named = set(re.findall(r"\]\(kubernetes/([a-z]+/[^)]+)\)", PAGE))
    assert named >= {"airflow/krbrefresh-values.yaml", "airflow/airflow-values.yaml"}
    for name in CHARTS:
        assert f"](kubernetes/{name})" in PAGE


@pytest.mark.parametrize(
    ("name", "kubernetes"),
    [("celery", BEFORE_NATIVE), ("celery", NEWEST), ("dask", BEFORE_NATIVE), ("dask", NEWEST), ("spark", NEWEST)],
)
def test_each_chart_is_valid_and_breaks_no_policy(name: str, kubernetes: str, tree: Path, judge: Judge) -> None:
    documents = judge.load(template({}, chart=tree / "docs" / "kubernetes" / name, kube_version=f"{kubernetes}.0"))
    waived = ["no_pod_has_a_service_account_token"] if name == "spark" else []
    assert not problems(documents, judge, kubernetes, *waived)
    helm("lint", "--strict", tree / "docs" / "kubernetes" / name, "--kube-version", f"{kubernetes}.0")


def test_a_dask_cluster_has_no_native_sidecar(tree: Path, judge: Judge) -> None:
    """Its operator's definition has no restartPolicy there: the API server would drop it."""
    documents = judge.load(template({}, chart=tree / "docs" / "kubernetes" / "dask", kube_version=f"{NEWEST}.0"))
    (cluster,) = (each for each in documents if each["kind"] == "DaskCluster")
    worker = cluster["spec"]["worker"]["spec"]
    assert [each["args"] for each in worker["initContainers"]] == [["once", "--keep-trying"]]
    assert not any("restartPolicy" in each for each in worker["initContainers"])
    assert [each["name"] for each in worker["containers"]] == ["worker", "krbrefresh"]


def test_spark_s_pods_have_what_is_said_of_them(tree: Path, judge: Judge) -> None:
    chart = tree / "docs" / "kubernetes" / "spark"
    with_operator = judge.load(template({}, chart=chart, kube_version=f"{NEWEST}.0"))
    for_submit = judge.load(template({"application": False}, chart=chart, kube_version=f"{NEWEST}.0"))
    made = [[pod for each in documents for pod in pods(each, judge)] for documents in (with_operator, for_submit)]
    assert made[0] == made[1]
    driver, executor = made[0]
    assert "automountServiceAccountToken" not in driver["spec"]
    assert executor["spec"]["automountServiceAccountToken"] is False
    for pod in made[0]:
        assert pod["spec"]["containers"][0]["name"] == f"spark-kubernetes-{pod['metadata']['name'].partition('-')[2]}"

    (application,) = (each for each in with_operator if each["kind"] == "SparkApplication")
    (submit,) = (words for words in commands() if words[0] == "spark-submit")
    for key, value in application["spec"]["sparkConf"].items():
        assert f"{key}={value}" in submit
    assert f"spark.kubernetes.container.image={application['spec']['image']}" in submit
    assert application["spec"]["mainApplicationFile"] == submit[-1]
    variables = environment(driver["spec"]["containers"][0])
    assert application["spec"]["sparkConf"]["spark.driver.extraJavaOptions"].endswith(f"={variables['KRB5_CONFIG']}")
    for file in ("driver", "executor"):
        get = ["kubectl", "get", "configmap", "report-pod-templates", "-o", f"jsonpath={{.data.{file}\\.yaml}}"]
        assert [*get, ">", f"{file}.yaml"] in commands()
        assert f"spark.kubernetes.{file}.podTemplateFile={file}.yaml" in submit


# --- Airflow ---


@pytest.fixture(scope="module")
def airflow(judge: Judge) -> Mapping:
    text = (EXAMPLES / "airflow" / "airflow-values.yaml").read_text()
    assert "{{" not in text  # Airflow's chart renders these values as templates
    (values,) = judge.load(text)
    return values


@pytest.fixture(scope="module")
def beside(judge: Judge) -> list[Mapping]:
    """What the page's command prints, and all that is installed beside Airflow."""
    (words,) = (each for each in commands() if each[:2] == ["helm", "template"])
    arguments = [str(ROOT / each) if each.startswith(("docs/", "charts/")) else each for each in words[1:]]
    assert arguments[-2:] == ["--show-only", "templates/example-deployment.yaml"]
    printed = judge.load(helm(*arguments))
    every = judge.load(helm(*arguments[:-2]))
    assert printed == [each for each in every if each["kind"] == "Deployment"]
    return every


@pytest.mark.parametrize("component", ["workers", "triggerer"])
def test_airflow_s_values_are_what_the_chart_prints(component: str, airflow: Mapping, beside: list[Mapping]) -> None:
    (deployment,) = (each for each in beside if each["kind"] == "Deployment")
    printed = deployment["spec"]["template"]
    (worker,) = printed["spec"]["containers"]
    values = airflow[component]
    assert values["extraInitContainers"] == printed["spec"]["initContainers"]
    assert values["extraVolumes"] == printed["spec"]["volumes"]
    assert values["extraVolumeMounts"] == mounts(worker)
    assert values["env"] == worker["env"]
    assert values["labels"] == {"krbrefresh": printed["metadata"]["labels"]["krbrefresh"]}
    user = worker["securityContext"]["runAsUser"]
    assert values["securityContexts"]["pod"] == {**printed["spec"]["securityContext"], "runAsUser": user}
    assert f"FILE:{airflow['config']['kerberos']['ccache']}" == environment(worker)["KRB5CCNAME"]


def test_airflow_s_own_sidecars_are_off(airflow: Mapping) -> None:
    assert airflow["kerberos"] == {"enabled": False}
    assert airflow["workers"]["kerberosSidecar"] == airflow["workers"]["kerberosInitContainer"] == {"enabled": False}


@pytest.mark.parametrize("component", ["workers", "triggerer"])
@pytest.mark.parametrize("kubernetes", ["1.29", NEWEST])
def test_airflow_s_pods_are_valid_and_break_no_policy(
    component: str, kubernetes: str, airflow: Mapping, beside: list[Mapping], judge: Judge
) -> None:
    """As its chart makes one for a task."""
    values = airflow[component]
    restricted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}  # its chart's own default
    base = {
        "name": "base",
        "image": "apache/airflow:3.2.1",
        "env": values["env"],
        "volumeMounts": values["extraVolumeMounts"],
        "securityContext": restricted,
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"airflow-{component}", "labels": {"component": component, **values["labels"]}},
        "spec": {
            "restartPolicy": "Never",
            "securityContext": values["securityContexts"]["pod"],
            "initContainers": values["extraInitContainers"],
            "containers": [base],
            "volumes": values["extraVolumes"],
        },
    }
    others = [each for each in beside if each["kind"] in {"ConfigMap", "PodMonitor"}]
    assert {each["kind"] for each in others} == {"ConfigMap", "PodMonitor"}
    assert not problems([*others, pod], judge, kubernetes, *AIRFLOWS)


def test_the_version_of_kubernetes_that_is_printed_for_is_one_with_native_sidecars() -> None:
    (words,) = (each for each in commands() if each[:2] == ["helm", "template"])
    assert words[words.index("--kube-version") + 1] == KUBERNETES.rpartition(".")[0]
