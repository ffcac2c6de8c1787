"""Bytes of a compiled loop, on a small module in HLO's text form."""

import pytest

from cai_jax.plan.hlo import parse, size
from cai_jax.plan.hlo_collectives import Collective, axes_of, collectives
from cai_jax.plan.hlo_traffic import host_transfers, loop_traffic, program_bytes

MODULE = """\
HloModule step, is_scheduled=true

%update (p.0: f32[64,128], p.1: f32[1,128], p.2: s32[]) -> f32[64,128] {{
  %p.0 = f32[64,128]{{1,0}} parameter(0)
  %p.1 = f32[1,128]{{1,0}} parameter(1)
  %p.2 = s32[]{{:T(128)}} parameter(2)
  ROOT %dus = f32[64,128]{{1,0}} dynamic-update-slice(%p.0, %p.1, %p.2, %p.2)
}}

%body (arg: (s32[], f32[64,128], f32[128,128])) -> (s32[], f32[64,128], f32[128,128]) {{
  %arg = (s32[], f32[64,128]{{1,0}}, f32[128,128]{{1,0}}) parameter(0)
  %n = s32[] get-tuple-element(%arg), index=0
  %cache = f32[64,128]{{1,0}} get-tuple-element(%arg), index=1
  %weight = f32[128,128]{{1,0}} get-tuple-element(%arg), index=2
  %row = f32[1,128]{{1,0:T(8,128)S(1)}} dynamic-slice(%cache, %n, %n), dynamic_slice_sizes={{1,128}}
  %out = f32[1,128]{{1,0:T(8,128)S(1)}} dot(%row, %weight), lhs_contracting_dims={{1}}
  %new = f32[64,128]{{1,0}} fusion(%cache, %out, %n), kind=kLoop, calls=%update
{more}
  ROOT %next = (s32[], f32[64,128]{{1,0}}, f32[128,128]{{1,0}}) tuple(%n, %new, %weight)
}}

%condition (arg.1: (s32[], f32[64,128], f32[128,128])) -> pred[] {{
  %arg.1 = (s32[], f32[64,128]{{1,0}}, f32[128,128]{{1,0}}) parameter(0)
  ROOT %true = pred[] constant(true)
}}

ENTRY %main (a: (s32[], f32[64,128], f32[128,128])) -> (s32[], f32[64,128], f32[128,128]) {{
  %a = (s32[], f32[64,128]{{1,0}}, f32[128,128]{{1,0}}) parameter(0)
  ROOT %loop = (s32[], f32[64,128], f32[128,128]) while(%a), condition=%condition, body=%body
}}
"""
ROW, WEIGHT, INDEX = 4 * 128, 4 * 128 * 128, 4
PLAIN = ROW + WEIGHT + ROW + INDEX  # the row read, the product, the row written in place


def test_what_a_step_touches_in_main_memory():
    traffic = loop_traffic(MODULE.format(more=""))
    assert traffic.bytes == PLAIN and traffic.host == ()
    assert traffic.largest[0] == (WEIGHT, "out")


@pytest.mark.parametrize(
    "line, more",
    [
        ("%copy = f32[64,128]{0,1} copy(%cache)", 2 * 64 * ROW),
        (
            "%fetch = (f32[64,128]{1,0:S(1)}, f32[64,128]{1,0}, u32[]{:S(2)}) copy-start(%cache)\n"
            "  %got = f32[64,128]{1,0:S(1)} copy-done(%fetch)",
            64 * ROW,
        ),
        (
            "%part = ((f32[128,128]{1,0}), f32[32,128]{1,0:S(1)}, s32[]{:S(2)}) "
            "slice-start(%weight), slice={[0:32], [0:128]}",
            32 * ROW,
        ),
        ("%sum = f32[1,128]{1,0} all-reduce(%out), to_apply=%add", ROW),
        (
            '%kernel = f32[1,128]{1,0} custom-call(%cache), custom_call_target="tpu_custom_call", '
            'backend_config={"custom_call_config":{"cost_estimate":{"bytes_accessed":"4096"}}}',
            4096,
        ),
    ],
)
def test_copies_prefetches_collectives_and_kernels_count(line, more):
    assert loop_traffic(MODULE.format(more=f"  {line}")).bytes == PLAIN + more


@pytest.mark.parametrize(
    "line",
    [
        "%x = (f32[1,128]{1,0}, u32[], token[]) send(%out, %n), channel_id=1",
        "%x = ((f32[1,128]{1,0}), token[]) infeed(%n)",
        '%x = () custom-call(%out), custom_call_target="xla_python_cpu_callback"',
        "%x = (f32[1,128]{1,0:S(5)}, f32[1,128]{1,0}, u32[]) copy-start(%out)",
    ],
)
def test_transfers_to_the_host_are_named(line):
    text = MODULE.format(more=f"  {line}")
    assert loop_traffic(text).host == ("x",) == host_transfers(text)


def test_sizes_of_types():
    assert size("(bf16[8,2]{1,0:T(8,128)(2,1)}, pred[3], s4[4]{0:S(1)})") == 32 + 3
    assert size("s4[4]{0:S(1)}", main_memory=False) == 2


def test_a_whole_program_moves_what_its_loops_do_as_often_as_they_run():
    """A send in a loop of 2 in one of 3, and a gather of a row of 8 to one of 16."""
    assert program_bytes(SENDS) == 3 * 2 * 2 * 8 * ROW + (8 + 16) * ROW
    once = SENDS.replace('"known_trip_count":{"n":"3"}', "")
    assert program_bytes(once) == 2 * 2 * 8 * ROW + (8 + 16) * ROW


def test_a_module_without_a_loop_is_refused():
    with pytest.raises(ValueError, match="has 0 loops"):
        loop_traffic("ENTRY %main (a: s32[]) -> s32[] {\n  ROOT %a = s32[] parameter(0)\n}")


SENDS = """\
HloModule step, is_scheduled=true

%inner (arg.0: f32[8,128]) -> f32[8,128] {
  %arg.0 = f32[8,128]{1,0} parameter(0)
  %there = (f32[8,128]{1,0}, f32[8,128]{1,0}, u32[], u32[]) collective-permute-start(%arg.0), source_target_pairs={{0,1},{1,0}}
  ROOT %here = f32[8,128]{1,0} collective-permute-done(%there)
}

%outer (arg.1: f32[8,128]) -> f32[8,128] {
  %arg.1 = f32[8,128]{1,0} parameter(0)
  ROOT %twice = f32[8,128]{1,0} while(%arg.1), condition=%true, body=%inner, backend_config={"known_trip_count":{"n":"2"}}
}

%true (arg.2: f32[8,128]) -> pred[] {
  %arg.2 = f32[8,128]{1,0} parameter(0)
  ROOT %yes = pred[] constant(true)
}

%gather (arg.3: f32[8,128]) -> f32[16,128] {
  %arg.3 = f32[8,128]{1,0} parameter(0)
  ROOT %all = f32[16,128]{1,0} all-gather(%arg.3), dimensions={0}
}

ENTRY %main (a: f32[8,128]) -> f32[16,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %thrice = f32[8,128]{1,0} while(%a), condition=%true, body=%outer, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %out = f32[16,128]{1,0} fusion(%thrice), kind=kCustom, calls=%gather
}
"""  # noqa: E501


PAIR = {"slice": 1, "fsdp": 2}


def test_collectives_count_as_often_as_their_loops_run():
    assert collectives(SENDS, PAIR) == [
        Collective("all-gather", ("fsdp",), 1, 16 * ROW),
        Collective("collective-permute", ("fsdp",), 6, 6 * 8 * ROW),
    ]
    unsaid = SENDS.replace('"known_trip_count":{"n":"2"}', "")
    with pytest.raises(ValueError, match="How often there is run is not said"):
        collectives(unsaid, PAIR)
    assert collectives(unsaid, PAIR, unsaid=5)[1].often == 3 * 5


BETWEEN = """
ENTRY %main (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %token = token[] after-all()
  %recv = (f32[8,128]{1,0}, u32[], token[]) recv(%token), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send = (f32[8,128]{1,0}, u32[], token[]) send(%a, %token), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%send), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  %done = (f32[8,128]{1,0}, token[]) recv-done(%recv), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  ROOT %got = f32[8,128]{1,0} get-tuple-element(%done), index=0
}
"""  # noqa: E501


def test_what_slices_send_one_another_goes_through_the_hosts():
    mesh = {"slice": 2, "fsdp": 2}
    assert collectives(BETWEEN, mesh) == [Collective("all-reduce", ("slice",), 1, 8 * ROW)]
    to_a_host = BETWEEN.replace("xla_megascale_runtime", "somebody else")
    assert collectives(to_a_host, mesh) == []


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", ("tensor",)),
        ("replica_groups={{0,2},{1,3},{4,6},{5,7}}", ("fsdp",)),
        ("replica_groups=[4,2]<=[8]", ("tensor",)),
        ("replica_groups=[2,4]<=[8]", ("fsdp", "tensor")),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ("slice",)),
        ("replica_groups=[1,8]<=[8]", ("slice", "fsdp", "tensor")),
        ("replica_groups=mesh['a'=4,'b'=2] {'b'}", ("tensor",)),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}", ("slice", "fsdp")),
        ("replica_groups=mesh['a'=4,'b'=2] {'a':(1)2}", ("slice",)),
        ("replica_groups=mesh['a'=4,'b'=2] {'a':(2)2,'b'}", ("fsdp", "tensor")),
        ("replica_groups={}", ("slice", "fsdp", "tensor")),
        ("source_target_pairs={{0,1},{1,0},{4,5}}", ("tensor",)),
        ("source_target_pairs={{0,4},{4,0}}", ("slice",)),
    ],
)
def test_axes_along_which_something_is_sent(groups, axes):
    kind = "collective-permute" if "pairs" in groups else "all-reduce"
    line = f"  ROOT %x = f32[2]{{0}} {kind}(%a), channel_id=1, {groups}, use_global_device_ids=true"
    text = f"ENTRY %main (a: f32[2]) -> f32[2] {{\n  %a = f32[2]{{0}} parameter(0)\n{line}\n}}"
    (one,) = (x for x in parse(text)["ENTRY main"].values() if x.name == "x")
    assert axes_of(one, {"slice": 2, "fsdp": 2, "tensor": 2}) == axes
