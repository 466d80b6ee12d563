"""ResNet-50 of any width, with torchvision's names, the last stage at full resolution."""

import torch.utils.model_zoo as model_zoo
from torch import nn


class Block(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = None
        if inputs != 4 * width:
            projection = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(4 * width))

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn3(self.conv3(self.bn2(self.conv2(y)).relu()))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, (depth, stride) in enumerate([(3, 1), (4, 2), (6, 2), (3, 1)]):
            features = width * 2**stage
            blocks = []
            for i in range(depth):
                blocks.append(Block(inputs, features, stride if i == 0 else 1))
                inputs = 4 * features
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))

    def stem(self, x):
        return nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)

    def stages(self, x):
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def resnet50(width, pretrained=False):
    model = ResNet(width)
    if pretrained:
        model.load_state_dict(model_zoo.load_url("https://nowhere.invalid/resnet50.pth"))
    return model
