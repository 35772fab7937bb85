import copy
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from wordsworth.vit_model.config import ModelError, ViTConfig
from wordsworth.vit_model.model import VisionTransformer
from wordsworth.vit_model.parallel import gathered_state_dict, parallelize

IMAGES, LABELS = (
    torch.randn(4, 3, 32, 48, generator=torch.Generator().manual_seed(1)),
    torch.tensor([0, 3, 1, 4]),
)
SHARDED = {
    "plain": {},
    "all": {"activation_checkpointing": True, "compile": True, "backend": "aot_eager"},
    "bf16": {"precision": "bf16"},
}
TIME_LIMIT = 120  # seconds, for both processes: a collective that waits for ever must not


@pytest.fixture
def model(tiny: ViTConfig, randomised) -> VisionTransformer:
    return randomised(
        VisionTransformer(replace(tiny, registers=1, dropout=0.1, drop_path=0.2, layer_scale=0.5))
    ).train()


def loss_and_gradients(model: torch.nn.Module) -> tuple[torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(3)  # dropout and drop path
    loss = F.cross_entropy(model(IMAGES), LABELS)
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


def saved_bytes(model: torch.nn.Module) -> int:
    """Return the bytes that a forward pass keeps for the backward pass: no parameters, each storage once."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = model(IMAGES).sum()
    found = sum(size for pointer, size in storages.items() if pointer not in own)
    del loss
    return found


def test_checkpointing_recomputes_every_block_and_changes_no_bit(model):
    plain = copy.deepcopy(model)
    checkpointed = parallelize(model, activation_checkpointing=True)
    calls = []
    for m in (plain, checkpointed):
        for block in m.blocks:
            block.mlp.register_forward_hook(lambda *_, m=m: calls.append(m))
    loss, gradients = loss_and_gradients(plain)
    loss_again, gradients_again = loss_and_gradients(checkpointed)
    assert torch.equal(loss, loss_again)
    assert all(torch.equal(a, b) for a, b in zip(gradients, gradients_again, strict=True))
    assert (calls.count(plain), calls.count(checkpointed)) == (2, 4)


def test_checkpointing_keeps_less_for_the_backward_pass(model):
    plain = saved_bytes(model)
    assert saved_bytes(parallelize(model, activation_checkpointing=True)) < plain / 4


def test_names_stay_and_a_copy_is_a_model_of_its_own(model):
    names = [name for name, _ in model.named_parameters()]
    keys = list(model.state_dict())
    parallelize(model, activation_checkpointing=True, compile=True, backend="aot_eager")
    assert [name for name, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == keys
    twin = copy.deepcopy(parallelize(VisionTransformer(model.config), activation_checkpointing=True))
    twin.load_state_dict(gathered_state_dict(model))
    assert all(block.forward.__self__ is block for block in twin.blocks)


@pytest.mark.slow
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_one_graph_serves_all_blocks(tiny, randomised, activation_checkpointing):
    torch._dynamo.reset()
    model = randomised(
        VisionTransformer(replace(tiny, depth=9))
    ).train()  # dynamo gives up after 8 graphs of one function
    loss, gradients = loss_and_gradients(copy.deepcopy(model))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = parallelize(
        model, compile=True, backend=counter, activation_checkpointing=activation_checkpointing
    )
    loss_again, gradients_again = loss_and_gradients(compiled)
    assert counter.frame_count == 1
    torch.testing.assert_close(loss_again, loss, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradients_again, gradients, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_blocks_with_drop_path_rates_of_their_own_compile_however_many_they_are(tiny, randomised):
    torch._dynamo.reset()
    model = randomised(VisionTransformer(replace(tiny, depth=12, drop_path=0.3)))
    with torch.no_grad():
        expected = model(IMAGES)
    with torch._dynamo.config.patch(recompile_limit=8):  # what dynamo starts with, and gets back
        parallelize(model.train(), compile=True, backend="eager")(IMAGES)
        with torch.no_grad():
            assert torch.allclose(model.eval()(IMAGES), expected, atol=1e-5)


@pytest.mark.long  # compiles C++; eager blocks: the tests above
@pytest.mark.slow
def test_a_block_compiled_by_inductor_computes_the_same(tiny, randomised):
    torch._dynamo.reset()
    model = randomised(VisionTransformer(replace(tiny, depth=1)))
    with torch.no_grad():
        expected = model(IMAGES)
        assert (parallelize(model, compile=True)(IMAGES) - expected).abs().max() < 1e-5


def test_a_precision_that_cannot_be_had_is_refused(tiny):
    with pytest.raises(ModelError, match="one of fp32, bf16"):
        parallelize(VisionTransformer(tiny), precision="fp8")
    with pytest.raises(ModelError, match="needs a mesh"):
        parallelize(VisionTransformer(tiny), precision="bf16")


def step(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Take a step that is linear in the gradient: Adam would turn a rounding error into a whole step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.detach()


def sharded_steps(rank: int, folder: Path, config: ViTConfig) -> None:
    """What each process does: its half of the batch through each kind of sharded model."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))
        for name, options in SHARDED.items():
            model = VisionTransformer(config)
            model.load_state_dict(torch.load(folder / "start.pt"))
            parallelize(model, mesh=mesh, **options)
            assert all(isinstance(p, DTensor) and p.dtype == torch.float32 for p in model.parameters())
            loss = step(model, IMAGES[2 * rank : 2 * rank + 2], LABELS[2 * rank : 2 * rank + 2])
            dist.all_reduce(loss)
            state = gathered_state_dict(model)
            assert bool(state) == (rank == 0)
            local = sum(p.to_local().numel() for p in model.parameters())
            if rank == 0:
                torch.save({"loss": loss / 2, "state": state, "local": local}, folder / f"{name}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> dict[str, dict]:
    """Return the reports of two processes for each kind, and of a plain model after the same step."""
    config = ViTConfig(
        image_size=(32, 48), patch_size=8, width=36, depth=2, heads=4, mlp_dim=63, num_classes=5, registers=1
    )
    torch.manual_seed(0)
    model, folder = VisionTransformer(config), tmp_path_factory.mktemp("sharded")
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.02
    torch.save(model.state_dict(), folder / "start.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        patch.syspath_prepend(Path(__file__).parents[2])  # the children import this module by its name
        run_to_the_end(mp.spawn(sharded_steps, (folder, config), nprocs=2, join=False))
    reports = {name: torch.load(folder / f"{name}.pt") for name in SHARDED}
    return reports | {
        "one process": {"loss": step(model, IMAGES, LABELS), "state": model.state_dict(), "model": model}
    }


def run_to_the_end(context: mp.ProcessContext) -> None:
    end = time.monotonic() + TIME_LIMIT
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < end, f"two processes did not finish in {TIME_LIMIT} seconds"
    finally:
        for process in context.processes:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "all"])
def test_sharded_over_two_processes_a_step_is_that_of_one(sharded, name):
    found, expected = sharded[name], sharded["one process"]
    torch.testing.assert_close(found["loss"], expected["loss"], atol=1e-6, rtol=0)
    torch.testing.assert_close(found["state"], dict(expected["state"]), atol=1e-6, rtol=0)
    start = VisionTransformer(expected["model"].config).state_dict()
    assert (
        found["state"]["blocks.0.attn.qkv.weight"] - start["blocks.0.attn.qkv.weight"]
    ).abs().max() > 1e-3  # it moved


@pytest.mark.slow
def test_a_process_holds_about_half_of_the_parameters(sharded):
    whole = sum(p.numel() for p in sharded["one process"]["model"].parameters())
    assert sharded["plain"]["local"] < 0.6 * whole


@pytest.mark.slow
def test_the_gathered_state_dict_loads_into_a_plain_model(sharded):
    trained = sharded["one process"]["model"]
    plain = VisionTransformer(trained.config)
    plain.load_state_dict(sharded["all"]["state"], strict=True)
    with torch.no_grad():
        assert torch.allclose(plain(IMAGES), trained(IMAGES), atol=1e-5)


@pytest.mark.slow
def test_bf16_computes_in_bfloat16_on_float32_parameters(sharded):
    found, expected = sharded["bf16"], sharded["one process"]
    assert found["loss"].dtype == torch.float32
    assert all(tensor.dtype == torch.float32 for tensor in found["state"].values())
    assert 1e-6 < (found["loss"] - expected["loss"]).abs() < 2e-2
