"""Builds the stages of a run from its resolved settings: the only package that names stages.

Imports are inside the functions: a command loads what it needs and no more.
"""

from __future__ import annotations

from pipeline.run.assemble.accounting import (
    book_cache,
    describe_run,
    make_journal,
    read_journal,
)
from pipeline.run.assemble.commands import (
    crypt,
    inspector,
    measure_target,
    stored_dump,
    transport,
)
from pipeline.run.assemble.delivery import (
    check_request,
    check_standard_output,
    check_target,
    deliver,
    final_receipt,
    make_sink,
)
from pipeline.run.assemble.first_pass import (
    filter_pages,
    find_kernel,
    need_kernel,
)
from pipeline.run.assemble.flow import (
    encrypted,
    make_flow,
    make_log_flow,
    make_pool,
)
from pipeline.run.assemble.source import (
    image_facts,
    make_cache,
    make_plain_cache,
    open_source,
    opened_source,
)

__all__ = [
    "book_cache",
    "check_request",
    "check_standard_output",
    "check_target",
    "crypt",
    "deliver",
    "describe_run",
    "encrypted",
    "filter_pages",
    "final_receipt",
    "find_kernel",
    "image_facts",
    "inspector",
    "make_cache",
    "make_flow",
    "make_journal",
    "make_log_flow",
    "make_plain_cache",
    "make_pool",
    "make_sink",
    "measure_target",
    "need_kernel",
    "open_source",
    "opened_source",
    "read_journal",
    "stored_dump",
    "transport",
]
