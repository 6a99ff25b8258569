"""What the oracle reads off a kernel's console; the texts are as Linux 6.1.176 prints them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chamber.lab.linux_oracle import judge_console
from chamber.lab.observation import Harm

BUG = """BUG: failure at drivers/block/virtio_blk.c:772/cache_type_show()!
Kernel panic - not syncing: BUG!
CPU: 0 PID: 697 Comm: python3.11 Not tainted 6.1.176 #1
Call Trace:
 [<606944ba>] ? _printk+0x0/0x94
 [<6069f511>] dump_stack+0x1a/0x1c
 [<606931e5>] panic+0x197/0x376
 [<81234567>] cache_type_show.cold+0x1a/0x1c [virtio_blk]
 [<60404040>] dev_attr_show+0x22/0x40
 [<60404140>] sysfs_kf_seq_show+0x22/0x40
"""
FAULT = """
Modules linked in: virtio_console
Pid: 21, comm: kworker/0:1 Not tainted 6.1.176
RIP: 0033:{function}+0x11/0x1f
RSP: 000000008bb43e48  EFLAGS: 00010202
RAX: {rax} RBX: 000000008c9e54a8 RCX: 0000000000000000
Kernel panic - not syncing: Segfault with no mm
CPU: 0 PID: 21 Comm: kworker/0:1 Not tainted 6.1.176 #1

Modules linked in: virtio_console
Pid: 21, comm: kworker/0:1 Not tainted 6.1.176
RIP: 0033:copy_from_kernel_nofault+0x5d/0x112
Kernel panic - not syncing: Segfault with no mm
"""
SLAB = """=============================================================================
BUG kmalloc-512 (Not tainted): Right Redzone overwritten
-----------------------------------------------------------------------------
0x0000000061234567-0x0000000061234580 @offset=1234. First byte 0x0 instead of 0xcc
Allocated in virtnet_probe+0x32/0x123 [virtio_net] age=1 cpu=0 pid=12
"""
WARNING = """------------[ cut here ]------------
WARNING: CPU: 0 PID: 33 at mm/page_alloc.c:5634 __alloc_pages+0x2f7/0xa3c
Modules linked in: virtio_console
Call Trace:
 [<60093b4c>] __warn+0xd2/0x107
 [<600c1234>] __alloc_pages+0x2f7/0xa3c
 [<600c1235>] __kmalloc_large_node+0x2f7/0xa3c
"""


def test_a_bug_is_denial_and_named_by_its_place() -> None:
    [evidence] = judge_console(BUG)
    assert evidence.harm is Harm.DENIAL
    assert evidence.signature == (
        "BUG drivers/block/virtio_blk.c:772/cache_type_show(): cache_type_show < dev_attr_show < sysfs_kf_seq_show")


def test_a_wild_write_is_memory_and_named_by_the_instruction_not_by_the_fault_in_reporting_it() -> None:
    [evidence] = judge_console(FAULT.format(function="strncpy", rax="0000000000000010"))
    assert evidence.harm is Harm.MEMORY
    assert evidence.signature == "fault without a process: strncpy"


def test_poison_in_registers_tells_a_use_after_free() -> None:
    [evidence] = judge_console(FAULT.format(function="__list_del_entry", rax="6b6b6b6b6b6b6b6b"))
    assert evidence.signature == "use of freed or unwritten memory: __list_del_entry"


def test_a_red_zone_is_named_by_who_allocated_the_object() -> None:
    [evidence] = judge_console(SLAB)
    assert evidence.harm is Harm.MEMORY
    assert evidence.signature == "slab Right Redzone overwritten kmalloc-512: object of virtnet_probe"


def test_a_process_killed_for_want_of_memory_is_denial() -> None:
    [evidence] = judge_console("Out of memory: Killed process 33 (python3.11) total-vm:38112kB, anon-rss:18444kB\n")
    assert (evidence.harm, evidence.signature) == (Harm.DENIAL, "out of memory Killed process")


def test_a_warning_is_denial() -> None:
    [evidence] = judge_console(WARNING)
    assert evidence.harm is Harm.DENIAL
    assert evidence.signature == "WARNING mm/page_alloc.c:5634: __alloc_pages < __kmalloc_large_node"


def test_who_asked_for_too_much_memory_is_named() -> None:
    trace = " [<600c1236>] ___kmalloc_large_node+0x1/0x2\n [<600c1237>] alloc_netdev_mqs+0x1/0x2\n"
    [evidence] = judge_console(WARNING + trace)
    assert evidence.signature == "WARNING mm/page_alloc.c:5634: alloc_netdev_mqs"


def test_a_null_pointer_is_denial_and_a_wild_one_is_not() -> None:
    line = "Kernel panic - not syncing: Kernel mode fault at addr {}, ip 0x60123456"
    assert [e.harm for e in judge_console(line.format("0x10"))] == [Harm.DENIAL]
    assert [e.harm for e in judge_console(line.format("0x72c33c60"))] == [Harm.MEMORY]


def test_poison_for_a_pointer_has_no_address_and_is_no_null_pointer() -> None:
    registers = "RIP: 0033:virtqueue_get_buf_ctx+0x1/0x2\nRAX: {} RBX: 0\n"
    line = "Kernel panic - not syncing: Kernel mode fault at addr 0x0, ip 0x60123456"
    assert [e.harm for e in judge_console(registers.format("6b6b6b6b6b6b6b6b") + line)] == [Harm.MEMORY]
    assert [e.harm for e in judge_console(registers.format("0000000000000000") + line)] == [Harm.DENIAL]


def test_ordinary_words_are_no_harm() -> None:
    quiet = """virtio_blk virtio0: [vda] 8192 512-byte logical blocks (4.19 MB/4.00 MiB)
virtio_net virtio1 eth0: renamed
I/O error, dev vda, sector 0 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2
Buffer I/O error on dev vda, logical block 0, async page read
virtio_blk virtio0: virtio_blk: invalid block size: 0x0
"""
    assert judge_console(quiet) == []


def test_several_reports_stay_in_order_and_repeat_once() -> None:
    found = judge_console(SLAB + WARNING + SLAB)
    assert [e.harm for e in found] == [Harm.MEMORY, Harm.DENIAL]


@given(st.text(max_size=2000))
def test_any_text_is_judged(text: str) -> None:
    assert isinstance(judge_console(text), list)


def test_kasan_names_the_function_itself() -> None:
    text = """[ 1.0] BUG: KASAN: slab-use-after-free in virtio_fs_done+0x1/0x2
[ 1.0] Call Trace:
[ 1.0]  [<60000000>] sprintf+0x1/0x2
[ 1.0]  [<60000000>] __asan_report_load8_noabort+0x1/0x2
[ 1.0]  [<60000000>] virtio_fs_done+0x1/0x2
[ 1.0]  [<60000000>] process_one_work+0x1/0x2
"""
    (evidence,) = judge_console(text)
    assert evidence.signature == "KASAN slab-use-after-free: virtio_fs_done < process_one_work"
    assert evidence.harm is Harm.MEMORY
    (evidence,) = judge_console(text.replace("in virtio_fs_done", "in sized_strscpy"))
    assert evidence.signature == "KASAN slab-use-after-free: virtio_fs_done < process_one_work"
