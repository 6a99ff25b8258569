"""What a Linux kernel's console tells: which harm was done, and where."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from chamber.lab.observation import Evidence, Harm

__all__ = ("judge_console", "strip_addresses")

_FRAMES: Final = 3
_CONTEXT_LINES: Final = 60
_LOW_ADDRESS: Final = 0x1000


@dataclass(frozen=True, slots=True)
class _Sign:
    """A line that tells of harm.

    Attributes:
        pattern: what the line looks like; a group named ``what`` refines the signature.
        harm: what it tells.
        name: start of the signature.
        complaint: the kernel goes on after it as before.

    """

    pattern: re.Pattern[str]
    harm: Harm
    name: str
    complaint: bool = False


def _sign(pattern: str, harm: Harm, name: str, *, complaint: bool = False) -> _Sign:
    return _Sign(re.compile(pattern), harm, name, complaint)


_SIGNS: Final = (
    _sign(r"BUG: KASAN: (?P<what>[\w-]+)(?: in (?P<at>\w+))?", Harm.MEMORY, "KASAN"),
    _sign(r"UBSAN: (?P<what>array-index-out-of-bounds|object-size[\w-]*) in", Harm.MEMORY, "UBSAN"),
    _sign(r"UBSAN: (?P<what>[\w-]+) in", Harm.DENIAL, "UBSAN"),
    _sign(r"BUG (?P<cache>[\w:-]+) \([^)]*\): (?P<what>[A-Z][\w ]+)", Harm.MEMORY, "slab"),
    _sign(r"(?P<what>list_(?:add|del)) corruption", Harm.MEMORY, "list corruption"),
    _sign(r"refcount_t: (?P<what>[\w -]+)[;.]", Harm.MEMORY, "refcount"),
    _sign(r"BUG: Bad page (?P<what>state|map)", Harm.MEMORY, "bad page"),
    _sign(r"(?P<what>stack-protector|Kernel stack is corrupted)", Harm.MEMORY, "stack"),
    _sign(r"BUG: (?P<what>sleeping function)", Harm.DENIAL, "BUG", complaint=True),
    _sign(r"BUG: (?P<what>scheduling while atomic|spinlock [\w ]+)", Harm.DENIAL, "BUG"),
    _sign(r"BUG: failure at (?P<what>[^!]+)", Harm.DENIAL, "BUG"),
    _sign(r"kernel BUG at (?P<what>\S+?)!", Harm.DENIAL, "BUG"),
    _sign(r"WARNING: CPU: \d+ PID: \d+ at (?P<what>\S+)", Harm.DENIAL, "WARNING", complaint=True),
    _sign(r"Kernel mode fault at addr 0x(?P<addr>[0-9a-f]+)", Harm.MEMORY, "fault"),
    _sign(r"Segfault with no mm", Harm.MEMORY, "fault without a process"),
    _sign(r"unable to handle .* at (?:virtual address )?(?:0x)?(?P<addr>[0-9a-f]+)", Harm.MEMORY, "fault"),
    _sign(r"general protection fault", Harm.MEMORY, "general protection fault"),
    _sign(r"INFO: task \S+ blocked", Harm.DENIAL, "hung task"),
    _sign(r"soft lockup|self-detected stall|detected stalls", Harm.DENIAL, "lockup"),
    _sign(r"unregister_netdevice: waiting", Harm.DENIAL, "reference to a removed interface"),
    _sign(r"irq \d+: nobody cared", Harm.DENIAL, "interrupt that nobody handles"),
    _sign(r"Out of memory: (?P<what>Killed process)", Harm.DENIAL, "out of memory"),
    _sign(r"Kernel panic - not syncing: (?P<what>.+)", Harm.DENIAL, "panic"),
)
"""In the order of their weight: the first that matches a line names it."""

_INSTRUCTION = re.compile(r"RIP: [0-9a-f]+:(?P<name>[\w.]+)\+0x")
_LOOK_BACK: Final = 16
_POISONED: Final = {"6b6b6b6b6b6b6b6b": "use of freed or unwritten memory", "5a5a5a5a5a5a5a5a": "use of slab padding"}
"""What SLUB fills objects with: in a register it tells where the bad pointer came from."""
_FATAL: Final = ("fault", "use of", "null pointer", "BUG", "panic")
_FRAME = re.compile(r"\[<[0-9a-f]+>\] (?P<unsure>\? )?(?P<name>[\w.]+)\+0x")
_NOISE = re.compile(
    r"^(_?printk|vprintk\w*|show_stack|show_regs|dump_stack\w*|panic|__warn\w*|warn_slowpath\w*|um_set_signals|block_signals|"
    r"unblock_signals\w*|segv\w*|sig_handler\w*|relay_signal|bad_segv|set_signals\w*|fatal_sigsegv|timer_real_alarm\w*|"
    r"hard_handler|userspace|handle_syscall|new_thread_handler|check_bytes_and_report|check_object|slab_\w+|object_err|"
    r"print_trailer|sprintf|info_print_prefix|printk_get_next_message|console_\w+|mem\w+|str\w*cpy|sized_strscpy|slab_err|check_slab|_+slab_alloc|__kmem_cache_alloc_node|validate_slab\w*|slab_pad_check|on_freelist|validate_store|free_debug_processing|"
    r"alloc_debug_processing|report_bug|asm_\w+|exc_\w+|do_trap|report_\w+|_*kasan_\w+|print_\w+|vpanic|add_taint|check_slab_allocation|"
    r"free_to_partial_list|"
    r"_*asan_\w+|_*ubsan_\w+|check_region_inline|get_partial_node\w*|free_consistency_checks|restore_bytes|kernfs_\w+|sysfs_kf_write)$")
_ALLOCATORS = re.compile(
    r"^(_*(alloc|get_free)_(frozen_)?pages\w*|_*k[vz]?[mcz]?alloc\w*|_*do_kmalloc\w*|_*kvmalloc\w*|_*krealloc\w*|_*vmalloc\w*|"
    r"devm_k\w*alloc\w*|_*kmem_cache_alloc\w*|folio_alloc\w*)$")
"""Who is asked for memory says nothing about who asked for too much of it."""
_ADDRESS = re.compile(r"\b(?:0x)?[0-9a-f]{8,16}\b")


def strip_addresses(text: str) -> str:
    """Replace addresses, which differ from run to run."""
    return _ADDRESS.sub("ADDR", text)


def _frames(lines: list[str]) -> list[str]:
    """Name the innermost functions of the first trace in `lines`, sure ones only, noise left out."""
    names: list[str] = []
    allocators: list[str] = []
    for line in lines:
        frame = _FRAME.search(line)
        name = frame["name"].partition(".")[0] if frame and not frame["unsure"] else ""
        known = allocators if _ALLOCATORS.match(name) else names
        if name and not _NOISE.match(name) and name not in known:
            known.append(name)
        if len(names) == _FRAMES:
            break
    return names or allocators[:_FRAMES]


def _fault(lines: list[str], number: int) -> tuple[str, list[str]]:
    """Tell what kind of memory a fault used, and where: User-Mode Linux prints registers before it panics."""
    before = lines[max(0, number - _LOOK_BACK):number]
    registers = "\n".join(before)
    kind = next((kind for poison, kind in _POISONED.items() if poison in registers), "")
    names = [m["name"].split(".")[0] for line in before if (m := _INSTRUCTION.search(line))]
    return kind, names[:1]


def _allocator(lines: list[str]) -> str:
    """Name the function that allocated the object of a slab report, if the report says so."""
    for line in lines:
        match = re.search(r"Allocated in (?P<name>\w+)", line)
        if match and not match["name"].startswith(("kmalloc", "__kmalloc", "kmem_cache", "__alloc_skb", "kvmalloc")):
            return match["name"]
    return ""


def judge_console(text: str) -> list[Evidence]:
    """Find every sign of harm in what a kernel printed, in order.

    A panic that only ends what an earlier line reported is not counted again, and neither are further reports with the
    same signature.
    """
    lines = text.splitlines()
    found: list[Evidence] = []
    for number, line in enumerate(lines):
        for sign in _SIGNS:
            match = sign.pattern.search(line)
            if match:
                break
        else:
            continue
        again = sign.name.startswith("fault") and found and found[-1].signature.startswith(_FATAL)
        if again or (found and sign.name == "panic"):
            continue  # the end of what was reported before, or a fault while that was being reported
        context = lines[number:number + _CONTEXT_LINES]
        groups = match.groupdict()
        harm, name = sign.harm, sign.name
        where = _frames(context)
        if groups.get("at") and not _NOISE.match(groups["at"]):
            # The function that it names did it. A trace of User-Mode Linux begins with what printed the report, now and
            # then with more of that than is known here.
            where = [groups["at"], *(name for name in where if name != groups["at"])][:_FRAMES]
        if sign.name.startswith("fault"):
            kind, at = _fault(lines, number)
            name = kind or name
            where = list(dict.fromkeys([*at, *where]))[:_FRAMES]
            address = int(groups.get("addr") or str(_LOW_ADDRESS), 16)
            # The processor names no address for a pointer that can't be one, such as poison: zero may be that.
            if 0 < address < _LOW_ADDRESS or (not address and not kind):
                # A null pointer stops the guest and gives the host nothing to write with.
                harm, name = Harm.DENIAL, "null pointer"
        parts = [name, strip_addresses((groups.get("what") or "").strip()), groups.get("cache") or ""]
        if sign.name == "slab":
            # Where corruption is noticed is chance; who allocated the object is not.
            allocator = _allocator(context)
            where = [f"object of {allocator}"] if allocator else where
        signature = ": ".join(filter(None, [" ".join(filter(None, parts)), " < ".join(where)]))
        if all(e.signature != signature for e in found):
            excerpt = lines[max(0, number - _LOOK_BACK):number + 30] if sign.name.startswith("fault") else context[:30]
            found.append(Evidence(harm, signature, "\n".join(excerpt), sign.complaint))
    return found
