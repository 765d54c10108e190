"""Generators of another earlier report: letters, calls, echoes, responses of driven systems, claims.

Legend: N rows, F features, C classes, L steps of a sequence, V words of the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn.functional import conv1d, one_hot

from planted.data import Pool, Source
from planted.generators import uniform


class Letters(Source):
    """Letters of 12 to 20 words, one-hot (L, V), zeros after the last: common words, words of a topic, and phrases.

    The class is the topic and which word of the phrases comes first. Topics and phrases are drawn.
    """

    num_classes, shape, phrases = 12, (20, 40), 2

    def setup(self, generator: Generator) -> None:
        names = torch.randperm(self.shape[1], generator=generator)
        self.pairs, words = names[: 2 * self.phrases].view(self.phrases, 2), names[2 * self.phrases :]
        # As in any language: the word of rank r is written once where the first is written r times.
        common = torch.zeros(self.shape[1])
        common[words] = 1 / torch.arange(1.0, len(words) + 1)
        self.common = common / common.sum()
        # Every topic has six words of its own, common ones and rare ones.
        mine = words[torch.randperm(len(words), generator=generator)].view(self.num_classes // 2, -1)
        self.topics = one_hot(mine, self.shape[1]).sum(1) / mine.shape[1]

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows, steps, every = len(target), self.shape[0], torch.arange(len(target))
        share = 0.75 / (1 + 0.6 * self.noise)
        chance = share * self.topics[target // 2] + (1 - share) * self.common
        words = torch.multinomial(chance, steps, replacement=True, generator=generator)
        length = torch.randint(12, steps + 1, (rows,), generator=generator)
        for part in range(3):
            # One phrase in each third of the shortest letter.
            place = 4 * part + torch.randint(3, (rows,), generator=generator)
            pair = self.pairs[torch.randint(self.phrases, (rows,), generator=generator)]
            turned = torch.rand(rows, generator=generator) < min(0.14 * self.noise, 0.5)
            first = target % 2 ^ turned.long()
            words[every, place], words[every, place + 1] = pair[every, first], pair[every, 1 - first]
        written = torch.arange(steps) < length.unsqueeze(1)
        return one_hot(words, self.shape[1]).float() * written.unsqueeze(2)


class Calls(Source):
    """Spectrograms (1, 16, 16) of a call, pitch by time: four syllables of a melody that is drawn, and its overtone.

    The class is the melody; key, loudness and begin are random, and every pixel is the logarithm of a power.
    """

    num_classes, shape = 7, (1, 16, 16)

    def setup(self, generator: Generator) -> None:
        melodies = torch.randint(-3, 4, (200, self.num_classes, 4), generator=generator).float()
        melodies -= melodies.mean(2, keepdim=True)
        # Of many draws the one whose melodies differ most from each other.
        apart = (melodies.unsqueeze(1) - melodies.unsqueeze(2)).abs().sum(3) + 99 * torch.eye(self.num_classes)
        self.melodies = melodies[apart.flatten(1).min(1).values.argmax()]

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows, side, one = len(target), self.shape[1], (len(target), 1)
        begin, key = uniform(0.5, 3.5, one, generator), uniform(4.5, 7, one, generator)
        place = (torch.arange(side) - begin) / 3  # of the syllable
        sings = (place > 0) & (place < 4)
        syllable = place.floor().long().clamp(0, 3)
        wrong = 0.35 * self.noise * torch.randn(rows, 4, generator=generator)
        pitch = (key + self.melodies[target] + wrong).gather(1, syllable).unsqueeze(1)
        heights = torch.arange(float(side)).view(1, side, 1)
        near = (-((heights - pitch) ** 2)).exp() + 0.4 * (-((heights - pitch - 6) ** 2)).exp()
        power = 4 * uniform(0.4, 1.6, (rows, 1, 1), generator) * near * sings.unsqueeze(1)
        # The power of noise is exponentially distributed.
        background = -torch.rand(rows, side, side, generator=generator).clamp(min=1e-6).log()
        return ((0.1 + power + 0.8 * self.noise * background).log() + 0.4).unsqueeze(1)


class Echoes(Source):
    """What two receivers hear of one random sound, (2, L): the class is how much later the second hears it.

    The colour of the sound and the delays are drawn for the task; loudness is random, and a share is reflected.
    """

    num_classes, shape, longest = 5, (2, 32), 6

    def setup(self, generator: Generator) -> None:
        colour = torch.randn(4, generator=generator)
        self.colour = colour / colour.norm()
        self.delays = -self.longest + 3 * torch.randperm(self.num_classes, generator=generator)

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows, steps, whole = len(target), self.shape[1], self.shape[1] + 4 * self.longest
        sound = torch.randn(rows, 1, whole + 3, generator=generator)
        sound = conv1d(sound, self.colour.view(1, 1, -1)).squeeze(1)
        sound[:, 5:] = sound[:, 5:] + uniform(0, 0.5, (rows, 1), generator) * sound[:, :-5]
        place = 2 * self.longest + torch.arange(steps)
        heard = torch.stack((sound[:, place], sound.gather(1, place - self.delays[target].unsqueeze(1))), dim=1)
        heard = heard * uniform(0.7, 1.3, (rows, 2, 1), generator)
        return heard + 0.75 * self.noise * torch.randn(heard.shape, generator=generator)


class Responses(Source):
    """A system that is driven, (L, 3): the drive, which jumps at random, and two readings of the state.

    The class is whether the system is slow or fast, and whether it is damped or swings; rates and readings are drawn.
    """

    num_classes, shape = 4, (32, 3)

    def setup(self, generator: Generator) -> None:
        self.rates = torch.tensor([0.45, 0.95]) * uniform(0.9, 1.1, (2,), generator)
        self.damping = torch.tensor([0.9, 0.25]) * uniform(0.9, 1.1, (2,), generator)
        self.readings, _ = torch.linalg.qr(torch.randn(2, 2, generator=generator))

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows, steps = len(target), self.shape[0]
        jumps = torch.rand(rows, steps, generator=generator) < 0.15
        levels = torch.randn(rows, steps, generator=generator)
        rate = self.rates[target // 2] * (0.12 * self.noise * torch.randn(rows, generator=generator)).exp()
        damping = self.damping[target % 2] * (0.2 * self.noise * torch.randn(rows, generator=generator)).exp()
        drive, place, speed = levels[:, 0], torch.zeros(rows), torch.zeros(rows)
        series = []
        for step in range(steps):
            drive = torch.where(jumps[:, step], levels[:, step], drive)
            # Four short steps for each that is read, so that a swing neither grows nor dies by the way it is computed.
            for _ in range(4):
                speed = speed + 0.25 * (rate**2 * (drive - place) - 2 * damping * rate * speed)
                place = place + 0.25 * speed
            series.append(torch.stack((drive, place, speed), dim=1))
        found = torch.stack(series, dim=1)
        found = torch.cat((found[:, :, :1], found[:, :, 1:] @ self.readings), dim=2)
        return found + 0.3 * self.noise * torch.randn(found.shape, generator=generator)


class Claims(Source):
    """A table (F,): a value lies near one of two places that its class and column have, whatever the other columns say.

    Places are drawn for the task, four columns say nothing, and some values are missing, and read zero.
    """

    num_classes, shape, telling = 3, (12,), 8

    def setup(self, generator: Generator) -> None:
        self.places = uniform(-2, 2, (self.num_classes, self.telling, 2), generator)
        self.order = torch.randperm(self.shape[0], generator=generator)

    def inputs(self, target: Tensor, generator: Generator, pool: Pool) -> Tensor:
        rows = len(target)
        side = torch.randint(2, (rows, self.telling, 1), generator=generator)
        features = 1.2 * torch.randn(rows, *self.shape, generator=generator)
        features[:, : self.telling] *= 0.5 * self.noise
        features[:, : self.telling] += self.places[target].gather(2, side).squeeze(2)
        missing = torch.rand(features.shape, generator=generator) < min(0.08 * self.noise, 0.5)
        return torch.where(missing, 0.0, features)[:, self.order]
