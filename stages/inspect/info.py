"""What an image is: format, machine, kernel, memory model, address layout, pages by class."""

from __future__ import annotations

from typing import Any

from pipeline.errors import DumpError
from pipeline.memory.sizes import show_count, show_size
from stages.cache.pages import CacheOptions, make_cache
from stages.filter.levels import MAX_LEVEL
from stages.filter.stage import FilterResult, filter_image
from stages.formats.kdump import utsname_strings
from stages.formats.vmcoreinfo import VmcoreInfo
from stages.reader.image import Image
from stages.translator.kernel import Kernel, open_kernel

_CACHE_BYTES = 8 << 20


async def describe(image: Image) -> dict[str, Any]:
    """Facts about `image`, ready for JSON; where one can't be told, `problems` says why."""
    facts = _image_facts(image)
    problems: list[str] = []
    facts["problems"] = problems
    if image.info.incomplete:
        problems.append(image.info.incomplete)
    if image.info.vmcoreinfo is None:
        problems.append("no VMCOREINFO: only dump levels 0 and 1 work")
        return facts
    try:
        kernel = await open_kernel(image, make_cache(image, CacheOptions(_CACHE_BYTES)))
        facts["kernel"] = await _kernel_facts(kernel)
        problems += kernel.warnings
        chosen = await filter_image(image, kernel, MAX_LEVEL)
        facts["pages"] |= _class_facts(chosen)
        facts["memory_model"] = chosen.memory_model
        problems += chosen.warnings
    except DumpError as error:
        problems.append(str(error))
        facts.setdefault("kernel", _release(image.info.vmcoreinfo))
    return facts


def _image_facts(image: Image) -> dict[str, Any]:
    info = image.info
    return {
        "path": image.path,
        "format": info.form,
        "machine": info.machine,
        "made_by": info.made_by,
        "page_size": info.page_size,
        "cpus": info.nr_cpus,
        "dump_level": info.dump_level,
        "max_mapnr": image.max_mapnr,
        "memory": [
            {"start": extent.start * info.page_size, "stop": extent.stop * info.page_size}
            for extent in image.ram
        ],
        "pages": {"described": image.ram.n_pages, "saved": image.saved.n_pages},
    }


async def _kernel_facts(kernel: Kernel) -> dict[str, Any]:
    info = kernel.info
    names = ("sysname", "nodename", "release", "version", "machine", "domainname")
    utsname = dict(zip(names, utsname_strings(await kernel.utsname()), strict=True))
    return {
        **_release(info.text),
        "utsname": utsname,
        "paging": kernel.layout.form.name,
        "phys_base": kernel.phys_base,
        "kaslr_offset": info.kernel_offset,
        "page_offset": await kernel.find_page_offset(),
        "crash_time": info.crashtime,
    }


def _release(text: bytes) -> dict[str, Any]:
    try:
        info = VmcoreInfo.parse(text)
    except DumpError:
        return {}
    return {"release": info.osrelease, "build_id": info.build_id}


def _class_facts(chosen: FilterResult) -> dict[str, Any]:
    return {
        "by_class": chosen.counts,
        "kernel_and_other": chosen.kept.count(),
        "without_struct_page": chosen.n_without,
        "missing": chosen.n_missing,
    }


def info_lines(facts: dict[str, Any]) -> list[str]:
    """`facts` for people."""
    pages = facts["pages"]
    size = facts["page_size"]
    cpus = show_count(facts["cpus"], "CPU")
    out = [
        f"format        {facts['format']}"
        + (f", made by {facts['made_by']}" if facts["made_by"] else ""),
        f"machine       {facts['machine']}, {cpus}, pages of {size} bytes",
    ]
    if facts["dump_level"]:
        out.append(f"dump level    {facts['dump_level']}")
    kernel = facts.get("kernel", {})
    if kernel.get("release"):
        out.append(f"kernel        {kernel['release']}")
    if "utsname" in kernel:
        out.append(
            f"              {kernel['utsname']['version']}, host {kernel['utsname']['nodename']}"
        )
    if "paging" in kernel:
        out.append(f"addresses     {_addresses(kernel)}")
    if "memory_model" in facts:
        out.append(f"memory model  {facts['memory_model']}")
    for index, extent in enumerate(facts["memory"][:_MAX_EXTENTS]):
        label = "memory        " if index == 0 else "              "
        shown = show_size(extent["stop"] - extent["start"])
        out.append(f"{label}{extent['start']:#014x} - {extent['stop']:#014x}  {shown}")
    if len(facts["memory"]) > _MAX_EXTENTS:
        out.append(f"              ... {len(facts['memory'])} extents in all")
    out.append(f"pages         {pages['described']} described, {pages['saved']} with content")
    out += _class_lines(pages, size)
    out += [f"note          {problem}" for problem in facts["problems"]]
    return out


_MAX_EXTENTS = 8


def _addresses(kernel: dict[str, Any]) -> str:
    said = (
        f"{kernel['paging']}, phys_base {kernel['phys_base']:#x}, KASLR {kernel['kaslr_offset']:#x}"
    )
    start = kernel["page_offset"]
    return said + (", direct map not found" if start is None else f", direct map at {start:#x}")


def _class_lines(pages: dict[str, Any], size: int) -> list[str]:
    if "by_class" not in pages:
        return []
    rows = [*pages["by_class"].items(), ("kept at -d 31", pages["kernel_and_other"])]
    return [f"  {name:<14} {count:>10}  {show_size(count * size):>10}" for name, count in rows]
