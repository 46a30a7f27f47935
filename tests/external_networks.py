"""Networks as other projects write them, and files of them."""

import os

import torch
import torch.nn.functional as F
from torch import nn

from hf_robust_transfer.modeling import PixelClassifier, import_checkpoint

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.201)
CIFAR10_OF_DEEPMIND = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
CIFAR100_OF_DEEPMIND = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


class BasicBlock(nn.Module):
    def __init__(self, inside, outside, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        changes = stride > 1 or inside != outside
        parts = (nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)) if changes else ()
        self.shortcut = nn.Sequential(*parts)

    def forward(self, x):
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class CifarResNet18(nn.Module):
    """As in pytorch-cifar, MadryLab's robustness and RobustBench."""

    def __init__(self, classes=3):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512, 1))
        self.linear = nn.Linear(512, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(F.avg_pool2d(x, 4).flatten(1))


class Bottleneck(nn.Module):
    def __init__(self, inside, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        changes = stride > 1 or inside != 4 * planes
        parts = (nn.Conv2d(inside, 4 * planes, 1, stride, bias=False), nn.BatchNorm2d(4 * planes)) if changes else ()
        self.shortcut = nn.Sequential(*parts)

    def forward(self, x):
        inner = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(inner)) + self.shortcut(x))


class CifarResNet50(CifarResNet18):
    """As in MadryLab's robustness, with fewer channels where they are given."""

    def __init__(self, classes=3, channels=(64, 128, 256, 512)):
        super().__init__(classes)
        inside = 64
        for number, (count, planes) in enumerate(zip((3, 4, 6, 3), channels, strict=True), 1):
            blocks = []
            for index in range(count):
                blocks.append(Bottleneck(inside, planes, 2 if number > 1 and index == 0 else 1))
                inside = 4 * planes
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.linear = nn.Linear(inside, classes)


class PreActivationBlock(nn.Module):
    def __init__(self, inside, outside, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(inside, outside, 1, stride, bias=False) if inside != outside else None

    def forward(self, x):
        active = F.relu(self.bn1(x))
        kept = x if self.convShortcut is None else self.convShortcut(active)
        return kept + self.conv2(F.relu(self.bn2(self.conv1(active))))


class Stage(nn.Module):
    def __init__(self, blocks, inside, outside, stride):
        super().__init__()
        first = PreActivationBlock(inside, outside, stride)
        self.layer = nn.Sequential(first, *(PreActivationBlock(outside, outside, 1) for _ in range(blocks - 1)))

    def forward(self, x):
        return self.layer(x)


class TradesWideResNet(nn.Module):
    """As in TRADES and RobustBench; ``sub_block1``, which TRADES has, takes no part in the forward pass."""

    def __init__(self, depth=16, width=2, classes=3, sub_block=True):
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1 = Stage(blocks, 16, 16 * width, 1)
        if sub_block:
            self.sub_block1 = Stage(blocks, 16, 16 * width, 1)
        self.block2 = Stage(blocks, 16 * width, 32 * width, 2)
        self.block3 = Stage(blocks, 32 * width, 64 * width, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, classes)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.avg_pool2d(F.relu(self.bn1(x)), 8).flatten(1))


class DeepMindBlock(nn.Module):
    def __init__(self, inside, outside, stride):
        super().__init__()
        self.batchnorm_0 = nn.BatchNorm2d(inside)
        self.conv_0 = nn.Conv2d(inside, outside, 3, stride, 0, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(outside)
        self.conv_1 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False) if inside != outside else None
        self.padding = (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1)

    def forward(self, x):
        active = F.silu(self.batchnorm_0(x))
        kept = x if self.shortcut is None else self.shortcut(active)
        return kept + self.conv_1(F.silu(self.batchnorm_1(self.conv_0(F.pad(active, self.padding)))))


class DeepMindStage(nn.Module):
    def __init__(self, blocks, inside, outside, stride):
        super().__init__()
        first = DeepMindBlock(inside, outside, stride)
        self.block = nn.Sequential(first, *(DeepMindBlock(outside, outside, 1) for _ in range(blocks - 1)))

    def forward(self, x):
        return self.block(x)


class DeepMindWideResNet(nn.Module):
    """As Gowal et al. (2020), Rebuffi, Wang and Bartoldson have it; its normalisation is in the code or a buffer."""

    def __init__(self, depth=16, width=2, classes=10, statistics=CIFAR10_OF_DEEPMIND, buffers=False):
        super().__init__()
        blocks = (depth - 4) // 6
        for name, values in zip(("mean", "std"), statistics, strict=True):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=buffers)
        self.init_conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.layer = nn.Sequential(
            DeepMindStage(blocks, 16, 16 * width, 1),
            DeepMindStage(blocks, 16 * width, 32 * width, 2),
            DeepMindStage(blocks, 32 * width, 64 * width, 2),
        )
        self.batchnorm = nn.BatchNorm2d(64 * width)
        self.logits = nn.Linear(64 * width, classes)

    def forward(self, x):
        x = self.layer(self.init_conv((x - self.mean) / self.std))
        return self.logits(F.avg_pool2d(F.silu(self.batchnorm(x)), 8).flatten(1))


class InputNormalize(nn.Module):
    """MadryLab's normaliser, with buffers (3, 1, 1)."""

    def __init__(self, mean=CIFAR_MEAN, std=CIFAR_STD):
        super().__init__()
        self.register_buffer("new_mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("new_std", torch.tensor(std)[:, None, None])

    def forward(self, x):
        return (x.clamp(0, 1) - self.new_mean) / self.new_std


class Attacker(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.normalize = InputNormalize()
        self.model = model


class AttackerModel(nn.Module):
    """What MadryLab's robustness saves: the network and its normaliser, both also inside the attacker."""

    def __init__(self, model):
        super().__init__()
        self.normalizer = InputNormalize()
        self.model = model
        self.attacker = Attacker(model)

    def forward(self, x):
        return self.model(self.normalizer(x))


class ImageNormalizer(nn.Module):
    """RobustBench's normaliser, with buffers (1, 3, 1, 1)."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(CIFAR_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(CIFAR_STD).view(1, 3, 1, 1))

    def forward(self, x):
        return (x - self.mean) / self.std


class ResNetWithStatistics(CifarResNet18):
    """As RobustBench builds some of its networks: the normalisation among the network's own buffers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mu", torch.tensor(CIFAR_MEAN).view(1, 3, 1, 1))
        self.register_buffer("sigma", torch.tensor(CIFAR_STD).view(1, 3, 1, 1))

    def forward(self, x):
        return super().forward((x - self.mu) / self.sigma)


def lively(network):
    """The network in eval mode with batch-norms that do something, as after training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return network.eval()


def prefixed(network, prefix="module."):
    return {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}


def saved(content, folder, **options):
    torch.save(content, folder / "checkpoint.pt", **options)
    return folder / "checkpoint.pt"


def assert_same_logits(network, file, size=32, classes=3, **options):
    """The model and image processor that a file becomes, whose logits are those of the network that it was made of."""
    model, processor = import_checkpoint(file, **{"id2label": dict(enumerate(map(str, range(classes)))), **options})
    pixels = torch.rand(4, 3, size, size)
    with torch.no_grad():
        expected = network(pixels)
        assert expected.std() > 0.01, "the logits say nothing"
        torch.testing.assert_close(PixelClassifier(model, processor)(pixels), expected, rtol=1e-5, atol=1e-5)
    return model, processor


class Payload:
    """Unpickling this runs a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)
