"""MODEL on the command line: what it may name, and what is said about everything else."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from fxq import ModelError
from fxq.cli.models import ModelSource, load_model

pytestmark = pytest.mark.usefixtures("fxq")  # the current directory holds nets_of_a_user.py


@pytest.mark.parametrize("attribute", ["small", "Small", "instance"], ids=["function", "class", "instance"])
def test_a_module_in_the_current_directory_is_found(attribute: str) -> None:
    model = load_model(ModelSource(f"nets_of_a_user:{attribute}"))
    assert type(model).__name__ == "Small"
    assert not model.training


def test_torchvision_and_timm_build_their_models_with_random_weights() -> None:
    source = ModelSource("torchvision:resnet18", num_classes=7)
    model = load_model(source)
    assert isinstance(model, torchvision.models.ResNet)
    assert model.fc.out_features == 7
    assert source.has_random_weights
    timm_model = load_model(ModelSource("timm:resnet10t", num_classes=3))
    assert timm_model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_a_segmentation_model_downloads_no_backbone() -> None:
    # Its backbone has trained weights by default; without network, asking for them fails.
    assert isinstance(load_model(ModelSource("torchvision:lraspp_mobilenet_v3_large")), nn.Module)


def test_a_callable_may_have_loaded_weights_of_its_own() -> None:
    assert not ModelSource("nets_of_a_user:small").has_random_weights


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", "'resnet18' names no model: write package.module:callable, torchvision:NAME, timm:NAME or hf:"),
        (":small", "names no model"),
        ("model.onnx", "names no model but an ONNX file, which fxq verify"),
        ("model.pt", "names no model but weights, which go with --weights: write"),
        ("./folder/net.py:Net", r"names a file; did you mean folder\.net:Net\?"),
        ("torchvision:resnet19", "torchvision has no model 'resnet19'; did you mean .*resnet18"),
        ("timm:resnet18x", "timm has no model 'resnet18x'; did you mean .*resnet18"),
        ("timm:hf-hub:somebody/something", "timm has no model"),
        ("nets_of_a_usr:small", "there is no module 'nets_of_a_usr' in the current directory"),
        ("nets_of_a_user.deeper:small", "there is no module 'nets_of_a_user.deeper'"),
        ("nets_of_a_user:smal", "'nets_of_a_user' has no 'smal'; did you mean small"),
        ("nets_of_a_user:number", "is a int; name a module, a class or a function"),
        ("nets_of_a_user:no_module", "returned int; it must return a torch.nn.Module"),
        ("nets_of_a_user:wants_an_argument", "failed: TypeError: .*width.*; wrap it in a function that takes none"),
    ],
)
def test_what_is_no_model_is_named_with_the_cure(spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(ModelSource(spec))


def test_a_module_that_fails_to_import_is_not_called_missing() -> None:
    Path("broken_net.py").write_text("import a_package_that_is_not_there\n")
    with pytest.raises(ModelError, match=r"importing 'broken_net' failed: ModuleNotFoundError.*a_package_that_is_not"):
        load_model(ModelSource("broken_net:net"))


def test_num_classes_is_refused_for_a_callable() -> None:
    with pytest.raises(ModelError, match="--num-classes is for torchvision and timm"):
        load_model(ModelSource("nets_of_a_user:small", num_classes=3))
