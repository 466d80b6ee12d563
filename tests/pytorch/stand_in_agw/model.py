"""A network with the interface and the keys of AGW's and CAJ's `model.py`, but narrow."""

import resnet
import torch
from torch import nn

WIDTH = 8
CHANNELS = 32 * WIDTH


class Wrapped(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.add_module(name, resnet.resnet50(WIDTH, pretrained=True))


class NonLocal(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.g = nn.Sequential(nn.Conv2d(channels, 1, 1))
        self.W = nn.Sequential(nn.Conv2d(1, channels, 1), nn.BatchNorm2d(channels))
        self.theta, self.phi = nn.Conv2d(channels, 1, 1), nn.Conv2d(channels, 1, 1)

    def forward(self, x):
        theta, phi, g = (layer(x).flatten(1) for layer in (self.theta, self.phi, self.g))
        attention = theta[:, :, None] * phi[:, None] / phi.shape[1]
        y = (attention @ g[:, :, None]).reshape(len(x), 1, *x.shape[2:])
        return self.W(y) + x


class embed_net(nn.Module):
    def __init__(self, class_num, no_local="on", gm_pool="on", arch="resnet50"):
        super().__init__()
        self.thermal_module, self.visible_module = Wrapped("thermal"), Wrapped("visible")
        self.base_resnet = Wrapped("base")
        self.blocks = {2: 0, 3: 0}
        if no_local == "on":
            self.blocks = {2: 2, 3: 3}
            self.NL_2 = nn.ModuleList(NonLocal(8 * WIDTH) for _ in range(2))
            self.NL_3 = nn.ModuleList(NonLocal(16 * WIDTH) for _ in range(3))
        self.gem = gm_pool == "on"
        self.bottleneck = nn.BatchNorm1d(CHANNELS)
        self.bottleneck.bias.requires_grad_(False)
        self.classifier = nn.Linear(CHANNELS, class_num, bias=False)

    def stages(self, x):
        for stage in (1, 2, 3, 4):
            residual = getattr(self.base_resnet.base, f"layer{stage}")
            count = self.blocks.get(stage, 0)
            for index, block in enumerate(residual, count - len(residual)):
                x = block(x)
                if index >= 0:
                    x = getattr(self, f"NL_{stage}")[index](x)
        return x

    def forward(self, x1, x2, modal=0):
        stems = self.visible_module.visible.stem, self.thermal_module.thermal.stem
        used = {0: (0, 1), 1: (0,), 2: (1,)}[modal]
        x = self.stages(torch.cat([stems[i]((x1, x2)[i]) for i in used]))
        pooled = ((x**3).mean((2, 3)) + 1e-12) ** (1 / 3) if self.gem else x.mean((2, 3))
        feature = self.bottleneck(pooled)
        if not self.training:
            return nn.functional.normalize(pooled), nn.functional.normalize(feature)
        return pooled, self.classifier(feature)
