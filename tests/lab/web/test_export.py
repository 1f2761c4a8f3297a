"""The graphs of the live page: gradients written out by hand, and an export that fails loudly."""

import pytest
import torch
import torch.nn.functional as F

from imagic_lab.web import export, page
from imagic_lab.web.gradients import convolution_backward, traced, upsample, upsample_backward
from imagic_lab.web.onnx_graph import onnx_of


@pytest.mark.parametrize("stride, padding, kernel, size", [(1, 1, 3, 6), (2, 1, 3, 6), (2, 1, 3, 7), (1, 0, 1, 5)])
def test_the_gradients_of_a_convolution_are_those_of_torch(stride, padding, kernel, size):
    x, w = torch.randn(2, 3, size, size, requires_grad=True), torch.randn(4, 3, kernel, kernel, requires_grad=True)
    bias = torch.randn(4, requires_grad=True)
    answer = F.conv2d(x, w, bias, stride, padding)
    go = torch.randn_like(answer)
    wanted = torch.autograd.grad(answer, [x, w, bias], go)
    how = [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [True] * 3
    found = convolution_backward(go, x.detach(), w.detach(), [4], *how)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(wanted, found, strict=True))


def test_upsampling_and_its_gradient_are_those_of_torch():
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    answer = F.interpolate(x, scale_factor=2, mode="nearest")
    go = torch.randn_like(answer)
    assert torch.equal(upsample(x, [8, 10]), answer)
    [wanted] = torch.autograd.grad(answer, x, go)
    assert torch.allclose(upsample_backward(go, [8, 10], [2, 3, 4, 5]), wanted, atol=1e-5)


def test_an_operation_that_is_not_known_is_named():
    graph = traced(lambda x: torch.linalg.inv(x), [torch.eye(3)])
    with pytest.raises(ValueError, match="linalg_inv"):
        onnx_of(graph, ["x"], ["answer"])


def test_a_graph_that_computes_something_else_is_refused(pipe):
    part, network = export.graphs_of(pipe)["text"], export.plain_copy(pipe, "text_encoder")
    model = export.exported(part, network)
    function, weights, _ = export.function_of(part, network)
    with pytest.raises(ArithmeticError, match=r"'answer' by 9\.9e-03"):
        export.check_graph(model, lambda *given: 1.01 * function(*given), part.inputs | weights)


def test_a_page_without_its_packages_or_its_model_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MODULES", tmp_path / "node_modules")
    with pytest.raises(FileNotFoundError, match="npm ci"):
        page.build_page(tmp_path / "out", tmp_path)
    (tmp_path / "node_modules").mkdir()
    with pytest.raises(FileNotFoundError, match=r"imagic_lab\.web\.export"):
        page.build_page(tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_page_gets_a_model_that_is_exported_anew_unless_one_is_named(tmp_path, monkeypatch):
    made, out = [], tmp_path / "out"
    monkeypatch.setattr(page, "MODULES", tmp_path)
    monkeypatch.setattr(page, "load_pipeline", lambda: "the embedded model")
    monkeypatch.setattr(page, "write_model", lambda pipe, folder: made.append((pipe, folder)))
    monkeypatch.setattr(page, "build_page", lambda out, model: made.append(model))
    (out / "assets").mkdir(parents=True)
    (out / "imagic.html").touch()
    page.main([str(out)])
    (pipe, folder), model = made
    assert pipe == "the embedded model" and folder == model
    page.main([str(out), str(tmp_path)])
    assert made[2:] == [tmp_path]
