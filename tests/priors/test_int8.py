"""Weights in eight bits."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from dream4d.priors import int8
from dream4d.priors.errors import ModelError
from dream4d.priors.weights import load_module, read_folder, tensor_names

CONFIG = {
    "sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 16,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
}  # fmt: skip


def test_every_number_is_off_by_half_a_step_of_its_row_at_most():
    weight = torch.randn(70, 33, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 2, 70)[
        :, None, None, None
    ]
    packed = int8.pack({"w": weight})
    assert packed["w"].dtype == torch.int8
    steps = weight.flatten(1).abs().amax(1) / 127
    off = (int8.unpack(packed)["w"] - weight).flatten(1).abs().amax(1)
    assert (off <= steps * 0.5001).all()
    assert (off > steps * 0.3).all()


def test_rows_of_zeros_small_tensors_and_whole_numbers_stay_what_they_are():
    tensors = {"zeros": torch.zeros(64, 64), "bias": torch.randn(500), "small": torch.randn(8, 8), "n": torch.arange(9)}
    back = int8.unpack(int8.pack(tensors))
    assert set(back) == set(tensors)
    assert torch.equal(back["zeros"], tensors["zeros"])
    assert torch.equal(back["small"], tensors["small"].half())
    assert torch.equal(back["bias"], tensors["bias"].half())
    assert torch.equal(back["n"], tensors["n"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_model_predicts_nearly_the_same(tmp_path, dtype):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**CONFIG).eval()
    int8.save(unet, tmp_path)
    loaded = load_module(UNet2DConditionModel, tmp_path, "cpu", dtype)
    assert next(loaded.parameters()).dtype == dtype
    assert not loaded.training
    assert set(tensor_names(tmp_path)) == set(unet.state_dict()) == set(read_folder(tmp_path))
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), torch.randn(2, 5, 16)
    with torch.no_grad():
        exact, near = unet(*inputs).sample, loaded.float()(*inputs).sample
    error = ((near - exact).norm() / exact.norm()).item()
    assert 1e-4 < error < 0.03  # and is not the exact one by some mistake
    fp16 = UNet2DConditionModel.from_config(unet.config).half()
    assert (tmp_path / "diffusion_pytorch_model.int8.safetensors").stat().st_size < 0.6 * sum(
        p.numel() * p.element_size() for p in fp16.parameters()
    )


def test_a_file_that_lacks_a_tensor_is_refused(tmp_path):
    int8.save(UNet2DConditionModel(**CONFIG), tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    tensors = load_file(file)
    del tensors["conv_in.weight"]
    save_file(tensors, file)
    with pytest.raises(ModelError, match=r"conv_in\.weight"):
        load_module(UNet2DConditionModel, tmp_path, "cpu", torch.float32)
