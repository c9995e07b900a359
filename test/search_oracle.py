#!/usr/bin/env python3
"""A plain simulation of the published rules of DeTikZify's tree search, written for itself: it shares no code and no data
structure with generate/search_tree.h. It runs the tests' invented models and compilers and prints what must happen.

    search_oracle.py > test/fixtures/search.txt

One case of the output:

    case SEED EXPLORATION STRICT COMPILER_ONLY MAX_LENGTH ROLLOUTS
    vocab TOKEN...        in hexadecimal, "-": no text, "!" before a token that ends a program
    root ID...            the tokens that all programs begin with
    e LEAF_LENGTH WIDEN COUNT GENERATED VALUE HASH    of each rollout: its leaf, its tokens in all, those that the model
                                                      wrote, the value that it yields, a hash of the tokens
    n DEPTH WIDEN EXPANDED LENGTH LINES VISITS SUM HASH    of each node, parents first
    best VALUE HASH
    end
"""
import math

MASK = (1 << 64) - 1


# ---- random numbers: splitmix64 and xoshiro256**, as in lib/random.h ----

def splitmix(state):
    state = (state + 0x9E3779B97F4A7C15) & MASK
    z = state
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return state, z ^ (z >> 31)


class Xoshiro:
    def __init__(self, seed):
        self.s = []
        for _ in range(4):
            seed, value = splitmix(seed)
            self.s.append(value)

    @staticmethod
    def rotate(x, k):
        return ((x << k) | (x >> (64 - k))) & MASK

    def next(self):
        s = self.s
        result = (self.rotate((s[1] * 5) & MASK, 7) * 9) & MASK
        t = (s[1] << 17) & MASK
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = self.rotate(s[3], 45)
        return result

    def below(self, n):
        blocks = (1 << 64) // n
        while True:
            x = self.next()
            if x < blocks * n:
                return x % n


def draw(seed, a, b):
    x = splitmix(seed)[1] ^ a
    x = splitmix(x)[1] ^ b
    return splitmix(x)[1]


def fnv(data):
    h = 14695981039346656037
    for byte in data:
        h = ((h ^ byte) * 1099511628211) & MASK
    return h


def hash_ids(ids):
    return fnv(b"".join(i.to_bytes(4, "little") for i in ids))


# ---- the world: an invented model and an invented compiler ----

class World:
    def __init__(self, seed, vocab, ends, compiler_only):
        self.seed, self.vocab, self.ends, self.compiler_only = seed, vocab, ends, compiler_only

    def next_token(self, rollout, position):
        own = draw(self.seed, rollout, position)
        pick = own if own % 6 == 0 else draw(self.seed, MASK, position)
        token = (pick >> 8) % len(self.vocab)
        if token in self.ends and (position < 3 or (pick >> 40) % 8):
            token = 0
        return token

    def text(self, ids):
        return b"".join(self.vocab[i] for i in ids)

    def compile(self, ids):
        """(drawn, clean, smallest line of an error, similarity)"""
        text = self.text(ids)
        lines = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        bad = [i for i, line in enumerate(lines, 1) if fnv(line + bytes([self.seed % 256])) % 17 == 0]
        h = fnv(text)
        line = 0 if h % 5 == 0 or not bad else min(bad)
        similarity = (h >> 8) % 7 / 8 if self.seed % 2 else (h >> 8) % 100000 / 100000 - 0.5
        return not bad or h % 3 == 0, not bad, line, similarity


# ---- the published rules ----

class Node:
    def __init__(self, ids, lines, parent=None, widen=False):
        self.ids, self.lines, self.parent, self.widen = ids, lines, parent, widen
        self.values, self.n, self.children, self.expanded = [], 0, [], False
        if not widen:
            self.children.append(Node(ids, lines, self, True))


class Search:
    def __init__(self, world, root, exploration, strict, max_length, seed):
        self.world, self.c, self.strict, self.max_length = world, exploration, strict, max_length
        self.random = Xoshiro(seed)
        self.seen = set()
        self.failed = {}
        self.compiled = {}
        self.root = Node(root, self.lines(root))
        self.count = 0

    def text_ends_line(self, ids):
        return self.world.text(ids).endswith((b"\n", b"\r"))

    def lines(self, ids):
        text = self.world.text(ids).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return text.count(b"\n") + (1 if text and not text.endswith(b"\n") else 0)

    def value(self, node):
        low, high = (min(self.seen), max(self.seen)) if self.seen else (0, 0)
        total, failures = 0.0, 0
        for v in node.values:
            if v is None:
                failures += 1
            else:
                total += (v - low) / (high - low) if high > low else 0
        return total - failures

    def score(self, child):
        n = max(1, child.n)
        w = 0 if child.widen else self.value(child) / n
        return w + self.c * math.sqrt(math.log(child.parent.n) / n)

    def select(self):
        node = self.root
        while node.expanded:
            scores = [self.score(child) for child in node.children]
            best = [child for child, s in zip(node.children, scores) if s == max(scores)]
            node = best[self.random.below(len(best))] if len(best) > 1 else best[0]
        return node

    def finished(self, ids):
        return len(ids) >= self.max_length or (len(ids) > len(self.root.ids) and ids[-1] in self.world.ends)

    def rollout(self, ids, number):
        """The states (token ids, lines) that follow, and how many tokens were written."""
        states, written, ids = [], 0, ids
        while not self.finished(ids):
            token = self.world.next_token(number, len(ids))
            ids = ids + (token,)
            written += 1
            if b"\n" in self.world.vocab[token] or b"\r" in self.world.vocab[token]:
                if ids in self.failed:
                    return states + self.failed[ids], written
                states.append((ids, self.lines(ids)))
        if written and (not states or states[-1][0] != ids):
            if ids in self.failed:
                return states + self.failed[ids], written
            states.append((ids, self.lines(ids)))
        return states, written

    def expand(self):
        number, self.count = self.count, self.count + 1
        leaf = node = self.select()
        states, written = self.rollout(leaf.ids, number)
        leaf.expanded = not leaf.widen
        if leaf.widen:
            leaf.n += 1
            node = leaf.parent
            while states:
                same = [c for c in node.children if not c.widen and c.ids == states[0][0]]
                if not same:
                    break
                node = same[0]
                states = states[1:]
        final = states[-1][0] if states else node.ids
        if final not in self.compiled:
            self.compiled[final] = self.world.compile(final)
        drawn, clean, error, similarity = self.compiled[final]
        k = round(math.sqrt(len(states)))
        scorable = drawn and not (self.strict and not clean)
        if scorable:
            for ids, lines in states[:k]:
                node = self.add(node, ids, lines)
        elif error > 0:
            for idx, (ids, lines) in enumerate(states):
                if lines < error and idx < k:
                    node = self.add(node, ids, lines)
                elif lines > error or (lines == error and self.text_ends_line(ids)):
                    self.failed[ids] = states[idx:]
                    break
        if self.world.compiler_only:
            v = (1 if clean else 0) if scorable else -1
        else:
            v = similarity if scorable else -1
        if scorable:
            self.seen.add(v)
        while node:
            node.values.append(v if scorable else None)
            node.n += 1
            node = node.parent
        return leaf, final, written, v

    @staticmethod
    def add(node, ids, lines):
        child = Node(ids, lines, node)
        node.children.append(child)
        node.expanded = True
        return child


def dump(search, node, depth=0):
    print("n", depth, int(node.widen), int(node.expanded), len(node.ids), node.lines, node.n,
          repr(float(search.value(node))), f"{hash_ids(node.ids):016x}")
    for child in node.children:
        dump(search, child, depth + 1)


VOCABULARIES = [  # the last token ends a program
    [b"a", b"b;", b"\n", b"c ", b"\n", b"d", b""],
    [b"x", b"\n  ", b";\n", b"p\nq", b"\n\n", b"yy", b"z\n", b""],
    [b"k", b"\r\n", b"\r", b"\n", b"l\r", b"m", b"\ro", b"n", b""],
    [b"u", b"v", b"w", b""],
    [b"ab", b"\n", b"cd\n", b"", b"ef", b"}\n"],  # an end with text, an empty token
]


def case(seed, vocab, exploration, strict, compiler_only, max_length, rollouts, root):
    world = World(seed, vocab, {len(vocab) - 1}, compiler_only)
    print("case", seed, exploration, int(strict), int(compiler_only), max_length, rollouts)
    print("vocab", *(("!" if i in world.ends else "") + (token.hex() or "-") for i, token in enumerate(vocab)))
    print("root", *root)
    search = Search(world, tuple(root), exploration, strict, max_length, seed)
    best = None
    for _ in range(rollouts):
        leaf, ids, written, v = search.expand()
        print("e", len(leaf.ids), int(leaf.widen), len(ids), written, repr(float(v)), f"{hash_ids(ids):016x}")
        if best is None or v > best[0]:
            best = v, ids
    dump(search, search.root)
    print("best", repr(float(best[0])), f"{hash_ids(best[1]):016x}")
    print("end")


def main():
    for v, vocab in enumerate(VOCABULARIES):
        for kind in range(4):
            seed = 100 * v + kind + 1
            root = [[], [0], [0, 1, 0], []][kind]
            case(seed, vocab, [0.6, 0.6, 1.5, 0][kind], kind == 1 or v == 2 and kind == 0, kind == 2,
                 [40, 60, 30, 12][kind], [60, 50, 40, 20][kind], root)
    case(11, VOCABULARIES[1], 0.6, False, False, 50, 100, [])


if __name__ == "__main__":
    main()
