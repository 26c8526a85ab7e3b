"""A third-party task: capitals of countries, asked at one or two hops."""

from evalsuite.records import Sample, Score
from evalsuite.task import Cell, generator, sample_id

CAPITALS = {"Peru": "Lima", "Nepal": "Kathmandu", "Côte d'Ivoire": "Yamoussoukro", "日本": "東京", "Chad": "N'Djamena"}


class Capitals:
    name, version, licence, source, needs = "capitals", 1, "CC0-1.0", "an atlas", ""

    def subtasks(self):
        return ("direct", "neighbour")

    def knobs(self):
        return {"hops": (1, 2), "style": ("plain",)}

    def cells(self, request):
        hops = request.knobs.get("hops", (1, 2))
        parts = request.subtasks or self.subtasks()
        lengths = request.lengths or (256,)
        return [Cell(f"capitals.{p}", {"length": n, "hops": h}, 0.2) for p in parts for n in lengths for h in hops]

    def missing(self, request):
        return {"capitals.rivers": "its map is not here; give --data map=PATH"}

    def sample(self, cell, index, request, count):
        draw = generator(cell.task, request.seed, index)
        country = draw.choice(list(CAPITALS))
        prompt = f"{'x ' * (cell.facets['length'] // 8)}capital of {country}?"
        name = sample_id(cell.task, cell.facets, index)
        return Sample(name, cell.task, prompt, (CAPITALS[country],), cluster=country, facets={"depth": draw.random()})

    def score(self, sample, completion):
        return Score(sample.id, float(completion.text in sample.target), completion.text, {"words": 1})
