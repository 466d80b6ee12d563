"""The batch-hard triplet loss (Eq. 1)."""

import torch
from torch import nn


class OriTripletLoss(nn.Module):
    def __init__(self, batch_size, margin=0.3):
        super().__init__()
        self.margin = margin

    def forward(self, features, labels):
        distances = (features[:, None] - features).square().sum(2).clamp(1e-12).sqrt()
        same = labels[:, None] == labels
        positive = distances.masked_fill(~same, -torch.inf).amax(1)
        negative = distances.masked_fill(same, torch.inf).amin(1)
        return (self.margin + positive - negative).relu().mean(), (
            negative >= positive
        ).sum().item()
