"""Reads YAML and judges manifests by the published schemas; runs where `kubernetes-validate` is installed.

A line of JSON in, a line of JSON out. The argument is a directory of custom resource definitions, which may be missing.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from kubernetes_validate import utils
from referencing import Registry, Resource

CRDS = Path(sys.argv[1])


class Reader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """As Kubernetes reads: a key that is there twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)  # type: ignore[no-any-return]


@functools.cache
def versions() -> dict[str, str]:
    """By its short name ("1.28"), the oldest first: the version that the schemas are of ("1.28.0")."""
    return {utils.major_minor(each): each for each in utils.all_versions()}


def contents(version: str, name: str) -> Any:
    return utils.schema_contents(f"kubernetes-json-schema/v{versions()[version]}-local-strict/{name}.json", version)


@functools.cache
def definitions(version: str) -> Registry[Any]:
    """What the schemas of a version refer to."""
    return (Resource.from_contents(contents(version, "_definitions")) @ Registry()).crawl()


def closed(schema: Any) -> Any:
    """A custom resource's schema that takes no key which it does not name: the API server would drop it in silence."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


@functools.cache
def custom() -> dict[tuple[str, str], Any]:
    """Schemas of custom resources, by apiVersion and kind."""
    found = {}
    for path in sorted(CRDS.glob("*.yaml")):
        spec = yaml.load(path.read_text(), Reader)["spec"]
        for version in spec["versions"]:
            schema = closed(version["schema"]["openAPIV3Schema"])
            # Such a schema says nothing of the metadata. What any object's may be holds for these, too.
            schema["properties"]["metadata"] = {
                "$ref": "https://kubernetes.io/api/_definitions.json#/$defs/"
                "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
            }
            found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    return found


@functools.cache
def validator(version: str, api_version: str, kind: str) -> Any:
    """None where no schema is known."""
    schema = custom().get((api_version, kind))
    if schema is None:
        group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)  # apps/v1: apps-v1
        try:
            schema = contents(version, f"{kind.lower()}-{group}")
        except FileNotFoundError:
            return None
    return jsonschema.Draft202012Validator(schema, registry=definitions(version))


@functools.cache
def verdict(version: str, text: str) -> tuple[str, ...]:
    """What is wrong with a document, given as JSON. The same one comes up in many renderings."""
    document = json.loads(text)
    found = validator(version, str(document.get("apiVersion")), str(document.get("kind")))
    if found is None:
        return (f"no schema is known for {document.get('apiVersion')} {document.get('kind')}",)
    return tuple(f"{each.json_path}: {each.message[:300]}" for each in found.iter_errors(document))


def title(document: Any) -> str:
    return f"{document.get('kind')} {(document.get('metadata') or {}).get('name')}"


def answer(request: Any) -> Any:
    if request["ask"] == "versions":
        return list(versions())
    if request["ask"] == "load":
        try:
            documents = [each for each in yaml.load_all(request["text"], Reader) if each is not None]
            json.dumps(documents)  # a date that was not quoted is no value that Kubernetes knows
        except (yaml.YAMLError, TypeError) as error:
            return {"error": str(error)}
        return {"documents": documents}
    return [
        (version, title(document), message)
        for document in request["documents"]
        for version in request["versions"]
        for message in verdict(version, json.dumps(document, sort_keys=True))
    ]


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
