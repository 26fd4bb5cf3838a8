"""The JSON Schema of tree.json, made from the types that read it: ``python -m medusa_runtime.schema > data/tree.schema.json``."""

from __future__ import annotations

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from .acceptance.rules import RULES
from .reading import adapter
from .treefile import FORMAT, MAJOR, TreeFile


class _Plain(GenerateJsonSchema):
    """Without titles, which repeat the names, and defaults, which the descriptions say."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        return {"type": "object"}

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        made = super().dataclass_schema(schema)
        first_paragraph = (schema["cls"].__doc__ or "").split("\n\n")[0]
        made["description"] = " ".join(first_paragraph.split()).replace("``", "`")
        if (name := getattr(schema["cls"], "name", None)) in RULES:
            made["properties"] = {"rule": {"const": name}, **made["properties"]}
            made["required"] = ["rule"]
        return made

    def sort(self, value: JsonSchemaValue, parent_key: str | None = None) -> JsonSchemaValue:
        return value


def schema() -> dict[str, Any]:
    """The published schema."""
    made = adapter(TreeFile).json_schema(schema_generator=_Plain)
    head = {"format": {"const": FORMAT}, "version": {"type": "string", "pattern": rf"^{MAJOR}\.[0-9]+$"}}
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "$id": "tree.schema.json",
        "title": f"tree.json of medusa-tree, version {MAJOR}",
        "description": "A planned candidate tree: paths in greedy order, what to run at each batch and context, and where the figures come "
        "from. Beyond this schema: every path's parent stands before it, no path stands twice, ranks are below candidates and paths no "
        "longer than heads. Fields that stand in no schema are let be: a newer minor version may have them.",
        "type": "object",
        "required": [*head, *made["required"]],
        "properties": {**head, **made["properties"]},
        "$defs": {name: {k: v for k, v in part.items() if k != "title"} for name, part in made["$defs"].items()},
    }


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))
