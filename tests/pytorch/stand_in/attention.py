"""Part and graph attention (Eq. 2-8) with the reference's names."""

import torch
from torch import nn


class Graph(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.W = nn.Parameter(nn.init.xavier_uniform_(torch.empty(inputs, outputs)))
        self.a = nn.Parameter(nn.init.xavier_uniform_(torch.empty(2 * outputs, 1)))

    def forward(self, x, adjacency):
        h = x @ self.W
        mine, others = self.a.chunk(2)
        scores = nn.functional.leaky_relu(h @ mine + (h @ others).T, 0.2)
        return scores.masked_fill(adjacency <= 0, -torch.inf).softmax(1) @ h


class IWPA(nn.Module):
    def __init__(self, channels, parts):
        super().__init__()
        self.fc1 = nn.Sequential(nn.Conv2d(channels, channels, 1))
        self.fc2 = nn.Conv2d(channels, channels, 1)
        self.fc3 = nn.Conv2d(channels, channels, 1)
        self.W = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))
        self.bottleneck = nn.BatchNorm1d(channels)
        self.bottleneck.bias.requires_grad_(False)
        self.gate = nn.Parameter(torch.full((parts,), 1 / parts))

    def forward(self, x, feature, parts):
        stripes = nn.functional.adaptive_avg_pool2d(x, (parts, 1))
        u, v, z = (layer(stripes).squeeze(3) for layer in (self.fc1, self.fc2, self.fc3))
        refined = z @ (u.mT @ v).softmax(2).mT
        return self.bottleneck(refined @ self.gate.softmax(0) + feature)
