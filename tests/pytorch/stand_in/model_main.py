"""A network with the interface and the keys of the reference's `model_main.py`, but narrow."""

import attention
import resnet
import torch
from torch import nn
from torchvision import models

assert models  # imported and not used, as there

WIDTH = 8
CHANNELS = 32 * WIDTH


class Wrapped(nn.Module):
    def __init__(self, name, part):
        super().__init__()
        self.add_module(name, resnet.resnet50(WIDTH, pretrained=True))
        self.run = getattr(getattr(self, name), part)

    def forward(self, x):
        return self.run(x)


class embed_net(nn.Module):
    def __init__(self, low_dim, class_num, drop=0.2, part=3, nheads=4, arch="resnet50", wpa=False):
        super().__init__()
        self.thermal_module = Wrapped("thermal", "stem")
        self.visible_module = Wrapped("visible", "stem")
        self.base_resnet = Wrapped("base", "stages")
        self.part = part
        self.bottleneck = nn.BatchNorm1d(CHANNELS)
        self.bottleneck.bias.requires_grad_(False)
        for name in ("classifier", "classifier1", "classifier2"):
            self.add_module(name, nn.Linear(CHANNELS, class_num, bias=False))
        self.wpa = attention.IWPA(CHANNELS, part)
        self.heads = [attention.Graph(CHANNELS, low_dim) for _ in range(nheads)]
        for i, head in enumerate(self.heads):
            self.add_module(f"attention_{i}", head)
        self.out_att = attention.Graph(low_dim * nheads, class_num)

    def forward(self, x1, x2, adj, modal=0, cpa=False):
        stems = {0: (True, True), 1: (True, False), 2: (False, True)}[modal]
        both = zip((self.visible_module, self.thermal_module), (x1, x2), stems, strict=True)
        x = self.base_resnet(torch.cat([stem(image) for stem, image, used in both if used]))
        pooled = x.mean((2, 3))
        feature = self.bottleneck(pooled)
        part = self.wpa(x, feature, self.part)
        if not self.training:
            return nn.functional.normalize(feature), nn.functional.normalize(part)
        elu = nn.functional.elu
        graph = torch.cat([elu(head(pooled, adj)) for head in self.heads], 1)
        graph = elu(self.out_att(graph, adj)).log_softmax(1)
        return pooled, self.classifier(feature), self.classifier(part), graph
