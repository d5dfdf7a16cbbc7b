"""One scrape of a metrics page."""

from prometheus_client.parser import text_string_to_metric_families


class Scrape:
    def __init__(self, text):
        self._samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def samples(self, name, /, **labels):
        """The samples of `name` that have `labels`, and maybe others."""
        found = [s for s in self._samples if s.name == name and labels.items() <= s.labels.items()]
        assert found, f"no {name} with {labels} among the metrics"
        return found

    def total(self, name, /, **labels):
        """The sum of those samples."""
        return sum(sample.value for sample in self.samples(name, **labels))

    def by(self, label, name, /, **labels):
        """{value of `label`: sum of its samples}, without those that are 0."""
        sums = {}
        for sample in self.samples(name, **labels):
            sums[sample.labels[label]] = sums.get(sample.labels[label], 0) + sample.value
        return {value: total for value, total in sums.items() if total != 0}


def growth(before, after):
    """What `Scrape.by` counts grew by, without those that did not."""
    grown = {key: after.get(key, 0) - before.get(key, 0) for key in before.keys() | after.keys()}
    return {key: value for key, value in grown.items() if value != 0}
