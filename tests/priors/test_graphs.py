"""CUDA graphs give what the functions give. On a CPU a recording that calls the function again stands in for a graph,
so that all but the capture is tested there."""

import gc
import threading
import weakref

import pytest
import torch
from tiny_models import save_denoiser, save_image_model, unet_2d, unet_3d, vae
from torch.utils._python_dispatch import TorchDispatchMode

from dream4d.cameras import orbit
from dream4d.distill import encode, sds_loss, video_reconstruction_loss
from dream4d.priors import graphs
from dream4d.priors.graphs import Graphed, Recording, graphed
from dream4d.priors.mvdream import MVDream
from dream4d.priors.parts import Autoencoder
from dream4d.priors.stable_diffusion import StableDiffusion
from dream4d.priors.text_to_video import TextToVideo

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def record_cpu(function, inputs, pool):
    output = function(*inputs).clone()
    return Recording(inputs, output, lambda: output.copy_(function(*inputs)), pool or object())


@pytest.fixture(autouse=True)
def recordings(monkeypatch):
    """Shapes in the order of their capture, on any device. The graphs of a function must share their memory."""
    captured, pools = [], weakref.WeakKeyDictionary()

    def spy(record):
        def call(function, inputs, pool):
            captured.append([None if value is None else tuple(value.shape) for value in inputs])
            recording = record(function, inputs, pool)
            assert recording.pool == pools.setdefault(function, recording.pool)
            return recording

        return call

    monkeypatch.setattr(graphs, "RECORDERS", {"cpu": spy(record_cpu), "cuda": spy(graphs.record_cuda)})
    return captured


def shift_and_scale(x, y=None, shift=None):
    return x.square() * 3 + (0 if y is None else y) + (0 if shift is None else shift)


def numbers(*shape, seed=0, device="cpu", dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


@pytest.mark.parametrize("device", DEVICES)
def test_new_values_of_known_shapes_are_replayed(device, recordings):
    function = Graphed(shift_and_scale)
    shapes, seen = [(3,), (2, 5), (3,), (3,), (2, 5)], []
    for seed, shape in enumerate(shapes):
        x, y = (numbers(*shape, seed=2 * seed + i, device=device) for i in range(2))
        seen.append((function(x, y), shift_and_scale(x, y)))
    for got, expected in seen:  # after all calls: no result is overwritten by a later one
        assert torch.equal(got, expected)
    assert recordings == [[(3,), (3,)], [(2, 5), (2, 5)]]


def test_dtype_and_absence_belong_to_the_signature(recordings):
    function, x = Graphed(shift_and_scale), numbers(3)
    for inputs in ((x, None, x), (x, x, None), (x.double(), x.double(), None), (x, None, x)):
        got, expected = function(*inputs), shift_and_scale(*inputs)
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)
    assert len(recordings) == 3


def test_an_expanded_input_and_one_in_another_order_are_copied_right():
    function = Graphed(shift_and_scale)
    for x in (numbers(1, 4).expand(4, 4), numbers(4, 4, seed=1).T, numbers(4, 4, seed=2)):
        assert torch.equal(function(x, numbers(4, 4, seed=3)), shift_and_scale(x, numbers(4, 4, seed=3)))


@pytest.mark.parametrize("device", DEVICES)
def test_only_the_latest_shapes_are_kept(device, recordings, monkeypatch):
    monkeypatch.setattr(graphs, "GRAPHS", 2)
    function = Graphed(shift_and_scale)
    for size in (1, 2, 1, 3, 1, 2):
        x = numbers(size, seed=size, device=device)
        assert torch.equal(function(x), shift_and_scale(x))
    assert recordings == [[(1,)], [(2,)], [(3,)], [(2,)]]


@pytest.mark.parametrize("device", DEVICES)
def test_calls_and_their_backward_passes_may_come_in_any_order(device, monkeypatch):
    monkeypatch.setattr(graphs, "GRAPHS", 2)
    function = Graphed(lambda x, y: (x**3 * y).sin())
    leaves = [numbers(size, seed=i, device=device).requires_grad_() for i, size in enumerate((4, 4, 5, 6, 4))]
    y = [numbers(len(x), seed=9, device=device) for x in leaves]
    weights = [numbers(len(x), seed=8, device=device) for x in leaves]
    results = [function(*pair) for pair in zip(leaves, y, strict=True)]
    for i in (1, 3, 0, 4, 2):
        results[i].backward(weights[i])
        expected = torch.autograd.grad((leaves[i] ** 3 * y[i]).sin(), leaves[i], weights[i])[0]
        torch.testing.assert_close(leaves[i].grad, expected)


def test_without_a_gradient_to_give_only_the_forward_pass_is_recorded(recordings):
    function, x = Graphed(shift_and_scale), numbers(3).requires_grad_()
    with torch.no_grad():
        assert not function(x).requires_grad
    assert not function(x.detach()).requires_grad
    assert len(recordings) == 1
    assert function(x).requires_grad
    assert len(recordings) == 2


def test_where_nothing_records_the_function_is_called_as_it_is(monkeypatch):
    monkeypatch.setattr(graphs, "RECORDERS", {})
    calls = []
    function = Graphed(lambda x: calls.append(x) or x * 2)
    x = numbers(3).requires_grad_()
    function(x).sum().backward()
    assert calls[0] is x
    assert torch.equal(x.grad, torch.full((3,), 2.0))


def test_a_network_that_is_trained_is_left_alone():
    network = torch.nn.Linear(3, 3)
    assert graphed(network, network) is network
    network.requires_grad_(False)
    assert isinstance(graphed(network, network), Graphed)


def test_a_large_autoencoder_is_not_recorded(folders, recordings, monkeypatch):
    """Graphs would hold on to the memory of all activations."""
    load(folders, "image").encode(numbers(1, 16, 16, 3))
    assert len(recordings) == 1
    monkeypatch.setattr(Autoencoder, "SMALL", 0)
    prior = load(folders, "image")
    prior.decode(prior.encode(numbers(1, 16, 16, 3)))
    assert len(recordings) == 1


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_image_model(folder / "image")
    save_denoiser(folder / "multiview", unet_2d(multiview=True))
    save_denoiser(folder / "video", unet_3d(), prediction_type="v_prediction")
    return folder


def load(folders, name, **options):
    if name == "image":
        return StableDiffusion.load(folders / "image", **options)
    if name == "multiview":
        return MVDream.load(folders / "multiview", folders / "image", **options)
    return TextToVideo.load(folders / "video", folders / "image", frames=3, **options)


def both(monkeypatch, function):
    """What `function` returns with recordings and without."""
    with_recordings = function()
    with monkeypatch.context() as patch:
        patch.setattr(graphs, "RECORDERS", {})
        return zip(with_recordings, function(), strict=True)


def assert_same(got, expected, inside=torch.float32):
    """The same kernels on the same numbers; a few units in the last place are left to sums in any order."""
    assert got.dtype == expected.dtype
    atol = 8 * torch.finfo(inside).eps * expected.abs().max().item()
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["image", "multiview", "video"])
def test_predictions_are_those_of_the_network(name, device, folders, recordings, monkeypatch):
    prior = load(folders, name, device=device)

    def predict():
        for seed, (items, size) in enumerate([(4, 8), (8, 8), (4, 8), (4, 16), (8, 8)]):
            cameras = orbit(90.0 * torch.arange(items), *torch.tensor([15.0, 2.0 + seed, 40.0]).unbind())
            condition = prior.condition(["a cat", "a dog"] * (items // 2), "bad" * seed, cameras)
            frames = (3,) if name == "video" else ()
            z = numbers(items, *frames, 4, size, size, seed=seed, device=device)
            timestep = (numbers(items, seed=seed).abs() * 300).long().clamp(0, 999).to(device)
            yield from prior.predict_noise(z, timestep, condition)

    for got, expected in both(monkeypatch, lambda: list(predict())):
        assert_same(got, expected)
    assert len(recordings) == 3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_latents_their_gradients_and_pixels_are_those_of_the_autoencoder(dtype, device, recordings, monkeypatch):
    if device == "cpu" and dtype == torch.float16:
        pytest.skip("half precision is for GPUs")
    autoencoder = Autoencoder(vae().to(device, dtype).requires_grad_(False))

    def work():
        for seed, items in enumerate((2, 3, 2, 3)):
            images = torch.rand(items, 16, 16, 3, generator=torch.Generator().manual_seed(seed)).to(device)
            latents = autoencoder.encode(images.requires_grad_())
            weights = numbers(*latents.shape, seed=seed, device=device)
            yield latents
            yield torch.autograd.grad(latents, images, weights)[0]
            yield autoencoder.decode(latents.detach())

    for got, expected in both(monkeypatch, lambda: list(work())):
        assert_same(got, expected, inside=dtype)
    assert len(recordings) == 6  # forward pass, backward pass and decoder for two shapes


class Capturable(TorchDispatchMode):
    """Refuses operators that wait for the device, that draw random numbers and that copy numbers of the host to it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        forbidden = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded}
        on_cpu_only = func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        assert on_cpu_only or not forbidden & set(func.tags), func
        assert func is not torch.ops.aten.lift_fresh.default, "torch.tensor() is a copy from the host"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["image", "multiview", "video"])
def test_nothing_that_a_capture_forbids_is_in_a_recording(name, folders, recordings, monkeypatch):
    def record(function, inputs, pool):
        with Capturable():
            return record_cpu(function, inputs, pool)

    monkeypatch.setitem(graphs.RECORDERS, "cpu", record)
    prior = load(folders, name)
    cameras = orbit(90.0 * torch.arange(4), *torch.tensor([15.0, 2.0, 40.0]).unbind())
    latents = encode(prior, torch.rand(4, *((3,) if name == "video" else ()), 16, 16, 3).requires_grad_())
    condition = prior.condition(["a cat"] * 4, "", cameras)
    prior.decode(prior.predict_noise(latents.detach(), torch.full((4,), 500), condition)[0])


@pytest.mark.gpu
def test_losses_on_a_gpu_are_those_without_graphs(folders, monkeypatch):
    image, video = (load(folders, name, device="cuda", dtype=torch.float16) for name in ("image", "video"))
    cameras = orbit(torch.zeros(2), torch.zeros(2), torch.full((2,), 3.0), torch.tensor(40.0))

    def work():
        generator = torch.Generator().manual_seed(0)
        for seed in range(3):
            images = numbers(2, 12, 12, 3, seed=seed, device="cuda").sigmoid().requires_grad_()
            videos = numbers(2, 3, 12, 12, 3, seed=seed, device="cuda").sigmoid().requires_grad_()
            told = [prior.condition(["a cat", "a dog"], "bad", cameras) for prior in (image, video)]
            options = {"scale": 7.5, "timesteps": (0.2, 0.8), "generator": generator}
            loss = sds_loss(image, encode(image, images), told[0], **options)
            loss = loss + video_reconstruction_loss(video, videos, told[1], pixel_weight=0.1, **options)
            loss.backward()
            yield from (loss.detach(), images.grad, videos.grad)

    for got, expected in both(monkeypatch, lambda: list(work())):
        scale = expected.abs().max().item()  # resizing adds up gradients in any order, before and after half precision
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-3 * scale)


@pytest.mark.gpu
def test_a_replay_runs_no_python_and_may_be_asked_for_by_another_thread(folders, recordings):
    prior, results = load(folders, "image", device="cuda"), []
    cameras = orbit(torch.zeros(2), torch.zeros(2), torch.full((2,), 3.0), torch.tensor(40.0))
    condition = prior.condition(["a cat", "a dog"], "", cameras)
    timestep = torch.tensor([10, 700], device="cuda")

    def predict(seed):
        results.append(prior.predict_noise(numbers(2, 4, 8, 8, seed=seed, device="cuda"), timestep, condition)[1])

    predict(0)
    calls = []
    prior.parts.unet.register_forward_hook(lambda *_: calls.append(1))
    predict(1)
    thread = threading.Thread(target=predict, args=(1,))
    thread.start()
    thread.join()
    assert calls == []
    assert len(recordings) == 1
    assert torch.equal(results[1], results[2])
    assert not torch.equal(results[0], results[1])


@pytest.mark.parametrize("device", DEVICES)
def test_a_prior_that_nobody_needs_is_gone_at_once(device, folders):
    """The models of one stage make room for those of the next without waiting for the garbage collector."""
    prior = load(folders, "image", device=device)
    images = torch.rand(1, 16, 16, 3).to(device).requires_grad_()
    cameras = orbit(torch.zeros(1), torch.zeros(1), torch.full((1,), 3.0), torch.tensor(40.0))
    latents = encode(prior, images)
    prior.predict_noise(latents.detach(), torch.tensor([5]).to(device), prior.condition(["a cat"], "", cameras))
    latents.sum().backward()
    alive = [weakref.ref(module) for module in (prior.parts.unet, prior.parts.autoencoder.vae)]
    gc.disable()
    try:
        del prior, latents
        assert [ref() for ref in alive] == [None, None]
    finally:
        gc.enable()
