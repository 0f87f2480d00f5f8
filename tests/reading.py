"""Everything that a source yields, for tests of readers."""

from distllm.config.schema_read import ReadConfig
from distllm.data.read import FIELDS, find_parts, read_part
from distllm.data.records import Document, Dropped


def items_of(source, *paths, part_bytes=1 << 26, **keys):
    config = ReadConfig(source=source, paths=tuple(map(str, paths)), **keys)
    parts, dropped = find_parts(source, config, part_bytes=part_bytes)
    items = [*dropped, *(item for part in parts for item in read_part(part, config))]
    assert all(tuple(item.fields) == FIELDS[source] for item in items if isinstance(item, Document))
    return items


def fields(items):
    return [item.fields for item in items]


def rules(items):
    return [item.rule for item in items if isinstance(item, Dropped)]
