"""The enhanced squared difference of CAJ."""

import torch
from torch import nn


class TripletLoss_ADP(nn.Module):
    def __init__(self, alpha=1, gamma=1, square=0):
        super().__init__()
        assert square == 1
        self.alpha, self.gamma = alpha, gamma

    def forward(self, features, labels):
        distances = (features[:, None] - features).square().sum(2).clamp(1e-12).sqrt()
        same = (labels[:, None] == labels).to(features.dtype)
        near, far = distances * same, distances * (1 - same)

        def mean(values, exponent, mask):
            weight = (exponent - (exponent * mask).amax(1, keepdim=True)).exp() * mask
            return (values * weight / (weight.sum(1, keepdim=True) + 1e-6)).sum(1)

        positive = mean(near, self.alpha * near, same)
        negative = mean(far, -self.alpha * far, 1 - same)
        exponent = (self.gamma * (positive - negative) ** 2).clamp(max=88)
        sign = torch.where(positive > negative, 1, -1)
        return torch.log1p(torch.exp(sign * exponent)).mean(), None
