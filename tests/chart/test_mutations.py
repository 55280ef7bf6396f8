"""The policies see what a slip in the templates would do: each is made in a copy of the chart."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chart.helm import CHART
from tests.chart.matrix import combination
from tests.chart.rendering import COUNTS, render
from tests.manifests import Judge
from tests.policies import broken, collisions

POD, CONTEXT, EXAMPLE = "_pod.tpl", "_context.tpl", "_example.tpl"


@dataclass(frozen=True)
class Slip:
    """A text in a template with another in its place, and the policy that is broken then."""

    file: str
    old: str
    new: str
    policy: str
    option: str = "nothing"
    kubernetes: str = "1.37"
    times: int = 1  # that the text is there


TOKEN_OF_WORKERS = "  mountPath: {{ .Values.ccacheMountPath }}\n  readOnly: true\n"
SLIPS = {
    "the keytab's volume in the worker": Slip(
        POD,
        TOKEN_OF_WORKERS,
        TOKEN_OF_WORKERS + '- name: {{ include "krbrefresh.part" (list . "-keytab") }}\n  mountPath: /keytab\n',
        "no_worker_has_a_private_secret",
    ),
    "the keytab's Secret in the worker's environment": Slip(
        EXAMPLE,
        "imagePullPolicy: {{ .Values.examples.image.pullPolicy }}\n",
        "imagePullPolicy: IfNotPresent\nenvFrom:\n"
        '  - secretRef:\n      name: {{ include "krbrefresh.secretName" . }}\n',
        "no_worker_has_a_private_secret",
    ),
    "the signing key instead of the public one": Slip(
        POD,
        '- name: {{ include "krbrefresh.part" (list . "-public-key") }}\n  mountPath',
        '- name: {{ include "krbrefresh.part" (list . "-signing-key") }}\n  mountPath',
        "no_worker_has_a_private_secret",
        option="signed, the public key in the values",
    ),
    "a variable for libkrb5": Slip(
        POD,
        "- name: KRB5CCNAME\n",
        "- name: KRB5_KTNAME\n  value: {{ .Values.keytabPath | quote }}\n- name: KRB5CCNAME\n",
        "no_worker_is_told_of_a_keytab",
    ),
    "subPath": Slip(
        POD,
        "      mountPath: {{ $each.path }}\n",
        "      mountPath: {{ $each.path }}/kerberos.keytab\n      subPath: kerberos.keytab\n",
        "each_refresher_has_its_keytab_as_a_directory",
    ),
    "a keytab that the refresher may write": Slip(
        POD,
        "      mountPath: {{ $each.path }}\n      readOnly: true\n",
        "      mountPath: {{ $each.path }}\n",
        "each_refresher_has_its_keytab_as_a_directory",
    ),
    "a keytab for everybody": Slip(
        POD,
        "    secretName: {{ $each.secret | toYaml }}\n    defaultMode: 0400\n",
        "    secretName: {{ $each.secret | toYaml }}\n    defaultMode: 0444\n",
        "private_secrets_are_mounted_for_their_owner_alone",
    ),
    "the keytab in a ConfigMap": Slip(
        "settings.yaml",
        "\ndata:\n",
        '\ndata:\n  {{- toYaml (include "krbrefresh.keytabs" . | fromJson) | nindent 2 }}\n',
        "key_material_stands_in_secrets_alone",
        option="keytab in the values",
    ),
    "a token that the worker may write": Slip(
        POD,
        TOKEN_OF_WORKERS,
        TOKEN_OF_WORKERS.replace("  readOnly: true\n", ""),
        "workers_read_tokens_and_do_not_write",
    ),
    "tokens on disk": Slip(POD, "    medium: {{ . }}\n", "", "tokens_are_in_memory_and_limited"),
    "tokens without a limit": Slip(
        POD,
        '    sizeLimit: {{ include "krbrefresh.quantity" .Values.token.sizeLimit }}\n',
        "",
        "tokens_are_in_memory_and_limited",
    ),
    "a root that can be written": Slip(POD, '"readOnlyRootFilesystem" true', '"tty" false', "roots_are_read_only"),
    "capabilities": Slip(POD, '(list "ALL")', '(list "NET_RAW")', "containers_are_restricted"),
    "escalation": Slip(POD, '"allowPrivilegeEscalation" false', '"tty" false', "containers_are_restricted"),
    "no seccomp profile": Slip(
        POD, '"seccompProfile" (dict "type" "RuntimeDefault")', '"supplementalGroups" list', "containers_are_restricted"
    ),
    "a service account's token": Slip(
        EXAMPLE, "automountServiceAccountToken: false\n", "", "no_pod_has_a_service_account_token"
    ),
    "one user for both": Slip(
        POD,
        '"runAsUser" (int64 .Values.users.worker)',
        '"runAsUser" (int64 .Values.users.refresher)',
        "users_are_two_and_the_group_is_shared",
    ),
    "a native sidecar for old clusters": Slip(
        CONTEXT, 'semverCompare ">=1.29.0-0"', 'semverCompare ">=1.20.0-0"', "jobs_end", kubernetes="1.28"
    ),
    "no stop file": Slip(POD, '"KRBREFRESH__REFRESHER__STOP_PATH"', '"STOP_PATH"', "jobs_end", kubernetes="1.28"),
    "a stop file that the worker does not leave": Slip(
        POD, """trap ': >{{ include "krbrefresh.stopPath" . }}' EXIT\n""", "", "jobs_end", kubernetes="1.28"
    ),
    "a stop file that the worker cannot leave": Slip(
        POD,
        "  mountPath: {{ .Values.sidecar.stopMountPath }}\n{{- end }}\n{{- end -}}\n",
        "  mountPath: {{ .Values.sidecar.stopMountPath }}\n  readOnly: true\n{{- end }}\n{{- end -}}\n",
        "jobs_end",
        kubernetes="1.28",
    ),
    "no start-up probe": Slip(
        POD,
        "  {{- if $native }}\n  # The worker",
        "  {{- if false }}\n  # The worker",
        "sidecars_are_probed_and_limited",
    ),
    "a volume that nobody mounts": Slip(
        POD,
        '    - name: {{ include "krbrefresh.part" (list . "-config") }}\n      mountPath: /etc/krbrefresh\n'
        "      readOnly: true\n",
        "",
        "volumes_are_there_and_used",
    ),
    "another ConfigMap": Slip(
        "settings.yaml", '(list . "-config")', '(list . "-settings")', "what_is_referred_to_is_there"
    ),
    "names that are not cut": Slip(
        CONTEXT, "(index . 1) 63)", "(index . 1) 99)", "names_are_valid_and_short", option="long names", times=2
    ),
    "a monitor of another port": Slip(
        "podmonitor.yaml",
        '- port: {{ include "krbrefresh.port" . | toYaml }}',
        "- port: metrics",
        "probes_and_monitors_find_their_ports",
        option="monitoring",
    ),
    "a selector without its pods": Slip(
        "example-deployment.yaml",
        '{{- include "krbrefresh.exampleSelector" $component | nindent 6 }}\n  template',
        "app: worker\n  template",
        "selectors_match_their_own_pods",
    ),
}


def slipped(directory: Path, slip: Slip) -> Path:
    chart = directory / "krbrefresh"
    shutil.copytree(CHART, chart)
    file = chart / "templates" / slip.file
    text = file.read_text()
    assert text.count(slip.old) == slip.times, "the template has changed: change this slip with it"
    file.write_text(text.replace(slip.old, slip.new))
    return chart


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_is_noticed(judge: Judge, tmp_path: Path, name: str) -> None:
    slip = SLIPS[name]
    together = combination(slip.kubernetes, slip.option)
    before, after = render(together, judge), render(together, judge, slipped(tmp_path, slip))
    assert before.rendering
    assert not broken(before.rendering)
    assert after.rendering, after.refused
    assert broken(after.rendering, slip.policy)
    COUNTS["slips in the templates noticed"] += 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            '{{ include "krbrefresh.name" . | toYaml }}: {{ include "krbrefresh.fullname" . | toYaml }}',
            'krbrefresh: "yes"',
        ),
        ("{{- .Release.Name }}-{{ $name -}}", "{{- $name -}}"),
    ],
    ids=["one label for all releases", "one name for all releases"],
)
def test_releases_that_would_collide_are_noticed(judge: Judge, tmp_path: Path, old: str, new: str) -> None:
    chart = slipped(tmp_path, Slip(CONTEXT, old, new, ""))
    together = combination("1.37", "monitoring")
    one, other = (render(each, judge, chart).rendering for each in (together, together.of("other")))
    assert one
    assert other
    assert list(collisions(one, other))
    COUNTS["slips in the templates noticed"] += 1
