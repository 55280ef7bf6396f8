"""The named templates as other charts include them, and the names of what they make."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import signal
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.chart.helm import CHART, RefusedError, Values, template
from tests.chart.values import EXAMPLES, MINIMUM, with_values

POD = """\
apiVersion: v1
kind: Pod
metadata:
  name: {{ .Release.Name }}-own
  labels: {{- include "krbrefresh.podLabels" $CONTEXT | nindent 4 }}
  annotations: {{- include "krbrefresh.podAnnotations" $CONTEXT | nindent 4 }}
spec:
  imagePullSecrets: {{- include "krbrefresh.imagePullSecrets" $CONTEXT | nindent 4 }}
  securityContext: {{- include "krbrefresh.podSecurityContext" $CONTEXT | nindent 4 }}
  initContainers: {{- include "krbrefresh.initContainers" $CONTEXT | nindent 4 }}
    # once{{- include "krbrefresh.oneShot" $CONTEXT | nindent 4 }}
  containers:
    - name: worker
      {{- $command := dict "root" $CONTEXT "command" (list "run" "it") "exec" false }}
      command: {{- include "krbrefresh.workerCommand" $command | nindent 8 }}
      env: {{- include "krbrefresh.workerEnv" (dict "root" $CONTEXT "credential" "default") | nindent 8 }}
      securityContext: {{- include "krbrefresh.workerSecurityContext" $CONTEXT | nindent 8 }}
      volumeMounts: {{- include "krbrefresh.workerMounts" $CONTEXT | nindent 8 }}
      readinessProbe: {{- include "krbrefresh.workerReadinessProbe" $CONTEXT | nindent 8 }}
    {{- include "krbrefresh.containers" $CONTEXT | nindent 4 }}
  volumes: {{- include "krbrefresh.volumes" $CONTEXT | nindent 4 }}
"""


def parent(directory: Path, *aliases: str, context: str = ".") -> Path:
    """A chart that has this one as a dependency, by other names or its own, and includes its templates."""
    chart = directory / "parent"
    shutil.copytree(CHART, chart / "charts" / "krbrefresh")
    (chart / "templates").mkdir()
    (chart / "templates" / "pod.yaml").write_text(POD.replace("$CONTEXT", context))
    dependencies = [
        {"name": "krbrefresh", "version": "*", **({} if alias == "krbrefresh" else {"alias": alias})}
        for alias in aliases or ("krbrefresh",)
    ]
    about = {"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": dependencies}
    (chart / "Chart.yaml").write_text(json.dumps(about))
    return chart


def own_pod(rendered: str) -> str:
    return rendered.partition("# Source: parent/templates/pod.yaml\n")[2].partition("\n---\n")[0]


@pytest.mark.parametrize("alias", ["krbrefresh", "kerberos"])
@pytest.mark.parametrize("version", ["1.28.0", "1.31.0"])
def test_a_parent_s_pod_by_its_own_root_context(tmp_path: Path, alias: str, version: str) -> None:
    pod = own_pod(template({alias: MINIMUM}, chart=parent(tmp_path, alias), kube_version=version))
    native = version != "1.28.0"
    assert f"{alias}: etl-{alias}\n" in pod
    assert f"name: etl-{alias}-config\n" in pod
    assert "secretName: etl-keytab\n" in pod
    assert pod.count(f"    - name: {alias}\n      image: ") == 1
    assert (f"- name: {alias}-first\n" in pod) is not native
    assert 'value: "FILE:/run/krbrefresh/default/krb5cc"' in pod
    assert "- run\n        - it\n" in pod
    assert ("- stop-file\n        - run\n" in pod) is not native


def test_two_dependencies_in_one_chart_by_their_own_contexts(tmp_path: Path) -> None:
    values: Values = {
        "one": MINIMUM,
        "two": with_values({"ccacheMountPath": "/run/two", "configPath": "/etc/two/krb5.conf", "listen": ":9465"}),
    }
    chart = parent(tmp_path, "one", "two", context=".Subcharts.two")
    rendered = template(values, chart=chart)
    assert "name: etl-two-config\n" in own_pod(rendered)
    assert "etl-one" not in own_pod(rendered)
    assert "name: etl-one-config\n" in rendered

    shutil.rmtree(chart)
    with pytest.raises(RefusedError, match=r"2 dependencies that are this chart \(one, two\).*\.Subcharts\.NAME"):
        template(values, chart=parent(tmp_path, "one", "two"))


@pytest.mark.parametrize(("context", "words"), [(".Values", "0 dependencies"), ('"x"', "wants the root context")])
def test_another_context_is_refused_in_words(tmp_path: Path, context: str, words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        template({"krbrefresh": MINIMUM}, chart=parent(tmp_path, context=context))


def test_without_enabled_a_parent_s_pod_has_nothing_of_it(tmp_path: Path) -> None:
    pod = own_pod(template({"krbrefresh": {"enabled": False}}, chart=parent(tmp_path)))
    assert "- name: krbrefresh" not in pod
    assert "KRB5CCNAME" not in pod
    assert "- run\n        - it\n" in pod


def test_an_error_of_the_values_is_told_in_a_parent_too(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="reinitFrequency is not a setting here"):
        template({"krbrefresh": with_values({"reinitFrequency": 1})}, chart=parent(tmp_path))


@pytest.fixture
def stop_script(tmp_path: Path) -> str:
    """What a worker's shell runs with the stop file, which is in tmp_path here."""
    values = with_values({**EXAMPLES, "sidecar": {"mode": "stopFile", "stopMountPath": str(tmp_path)}})
    found = re.search(r"- \|-\n((?: +.*\n)+?) +- stop-file\n", template(values))
    assert found
    return textwrap.dedent(found[1])


@pytest.mark.parametrize(
    ("does", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 128 + signal.SIGKILL), ("no-such-program", 127)]
)
def test_the_stop_file_is_there_when_the_command_has_ended(
    tmp_path: Path, stop_script: str, does: str, status: int
) -> None:
    command = ["/bin/sh", "-c", stop_script, "stop-file", "/bin/sh", "-c", does]
    assert subprocess.run(command, capture_output=True, timeout=30).returncode == status
    assert (tmp_path / "done").exists()


def test_a_stop_volume_that_cannot_be_written_to_ends_the_worker_at_once(tmp_path: Path, stop_script: str) -> None:
    gone = stop_script.replace(str(tmp_path), str(tmp_path / "nowhere"))
    ran = subprocess.run(
        ["/bin/sh", "-c", gone, "stop-file", "touch", str(tmp_path / "ran")], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode != 0
    assert "nowhere/begun" in ran.stderr
    assert not (tmp_path / "ran").exists()


def test_term_reaches_the_command_and_the_stop_file_waits_for_its_end(tmp_path: Path, stop_script: str) -> None:
    work = f"trap 'sleep 0.5; ls {tmp_path}; exit 7' TERM; echo ready; while :; do sleep 0.1; done"
    command = ["/bin/sh", "-c", stop_script, "stop-file", "/bin/sh", "-c", work]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        said, _ = process.communicate(timeout=30)
    assert (said, process.returncode) == ("begun\nstarted\n", 7)
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("after", ["starts it", "knows its name"])
def test_a_term_that_comes_while_the_command_is_being_started_reaches_it(
    tmp_path: Path, stop_script: str, after: str
) -> None:
    line = {"starts it": 'exec "$@") &\n', "knows its name": "child=$!\n"}[after]
    assert line in stop_script
    command = ["/bin/sh", "-c", stop_script.replace(line, line + "kill -TERM $$\n"), "stop-file", "sleep", "60"]
    for _ in range(20):
        (tmp_path / "started").unlink(missing_ok=True)
        assert subprocess.run(command, timeout=30).returncode == 128 + signal.SIGTERM
    assert (tmp_path / "done").exists()


LONG = "a" * 53
EVERYTHING: Values = {
    "podMonitor": {"enabled": True},
    "prometheusRule": {"enabled": True},
    "dashboard": {"enabled": True},
    "networkPolicy": {"enabled": True},
    "keytab": {"existingSecret": ""},
    "keytabBase64Content": "BQIAAAAA",
    "krb5Conf": {"existingConfigMap": ""},
    "config": "[libdefaults]",
    "signing": {"existingSecret": "signing", "publicKey": "PEM"},
    "credentials": {"c" * 40: {"principal": "c@X", "keytabSecret": {"name": "c"}}},
}


def names(rendered: str) -> list[str]:
    return re.findall(r"^metadata:\n  name: (\S+)$", rendered, re.MULTILINE)


@pytest.mark.parametrize("overrides", [{}, {"fullnameOverride": "b" * 70}, {"nameOverride": "n" * 70}])
@pytest.mark.parametrize("release", ["etl", "krbrefresh", LONG])
def test_names_are_no_longer_than_kubernetes_takes(release: str, overrides: dict[str, Any]) -> None:
    rendered = template(with_values(EXAMPLES, EVERYTHING, overrides), release=release)
    assert len(names(rendered)) == 12
    found = [
        *re.findall(r"[nN]ame: (\S+)$", rendered, re.MULTILINE),
        *re.findall(r"^ +(?:krbrefresh|n+-\w+|app.kubernetes.io/\w+): (\S+)$", rendered, re.MULTILINE),
    ]
    for name in found:
        plain = name.strip('"')
        if re.fullmatch(r"[a-z0-9-]+(\.json)?", plain):
            assert len(plain) <= 63, name
            assert not plain.endswith("-"), name
    ports = re.findall(r"^ +- name: (\S+)\n +containerPort", rendered, re.MULTILINE)
    assert ports
    assert all(len(port) <= 15 for port in ports)
    (cron_job,) = (name for name in names(rendered) if name.endswith("-cronjob"))
    assert len(cron_job) <= 52


def test_releases_in_one_namespace_have_no_name_in_common() -> None:
    """Also those whose long names differ at the end alone."""
    releases = ("etl", "etl-krbrefresh", "krbrefresh", LONG, LONG[:-1] + "b")
    made = {release: names(template(with_values(EXAMPLES, EVERYTHING), release=release)) for release in releases}
    for one, other in itertools.combinations(releases, 2):
        assert not set(made[one]) & set(made[other]), (one, other)
    for release in releases:
        rendered = template(with_values(EXAMPLES, EVERYTHING), release=release)
        selectors = set(re.findall(r"^ +krbrefresh: (\S+)$", rendered, re.MULTILINE))
        assert len(selectors) == 1, "pods and those who look for them"
