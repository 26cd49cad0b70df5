"""Entry points for torch.hub, one for each network: `torch.hub.load(FOLDER, "sllnet_small", source="local", weights="model.pt")`.

And one for each trained model: `torch.hub.load(FOLDER, "orthonet_faces", source="local")`, the network of `backbones.load_network(name)`.

torch.hub finds functions by their names in this module, so they are made here from the names in `backbones`. The packages here are called
`backbones` and `utils`: a process that has imported others of these names cannot load networks in this way.
"""
from collections.abc import Callable as _Callable
from typing import Any as _Any

from torch import nn as _nn

from backbones import backbone_names as _backbone_names
from backbones import get_backbone as _get_backbone
from backbones import load_network as _load_network
from backbones import models as _models

dependencies = ["torch", "numpy", "tqdm"]


def _entry_point(name: str) -> _Callable[..., _nn.Module]:
    def network(weights: str | None = None, **kw: _Any) -> _nn.Module:
        return _get_backbone(name, **kw) if weights is None else _load_network(name, weights, **kw)

    network.__name__ = network.__qualname__ = name
    network.__doc__ = f"""The network {name}.

    weights: the path of a checkpoint; the network then is that of `backbones.load_network`, in eval mode and frozen: images [N, C, H, W],
    pixels in [-0.5, 0.5] -> embeddings. Of a 1-Lipschitz network the constant has been checked with these weights; `tight=True` divides by
    it. Without weights it is that of `backbones.get_backbone`, freshly initialised and to be trained. Further arguments go there.
    """
    return network


def _trained(name: str) -> _Callable[..., _nn.Module]:
    def model(**kw: _Any) -> _nn.Module:
        return _load_network(name, **kw)

    model.__name__ = model.__qualname__ = name
    model.__doc__ = f"""The trained model {name}, {_models.find(name).note}: see params/models.json and `backbones.load_network`."""
    return model


globals().update({name: _trained(name) for name, model in _models.models().items() if model.file})
globals().update({name: _entry_point(name) for name in _backbone_names()})
