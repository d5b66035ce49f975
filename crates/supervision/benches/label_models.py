"""The other side of label-models.rs: Crowd-Kit's Dawid-Skene and Snorkel's label model, one fit a process.

    python label_models.py check
    python label_models.py crowd-kit|snorkel VOTES.npy LABELS

Votes are items x voters, int8, -1 where there is none. Prints one line of JSON: seconds of the fit and the labels it
gives, without reading the file, importing or building the data frame; steps; peak memory. Writes one byte an item.
"""
import json
import resource
import sys
import time
import warnings

warnings.filterwarnings("ignore")


def check():
    from importlib.metadata import PackageNotFoundError, version

    for name, module in [("crowd-kit", "crowdkit.aggregation"), ("snorkel", "snorkel.labeling.model")]:
        try:
            __import__(module)
            print(name, version(name))
        except (ImportError, PackageNotFoundError) as error:
            print(f"no {name}: {error}", file=sys.stderr)


def crowd_kit(votes):
    import numpy as np
    import pandas as pd
    from crowdkit.aggregation import DawidSkene

    items, voters = np.nonzero(votes >= 0)
    frame = pd.DataFrame({"task": items, "worker": voters, "label": votes[items, voters]})
    model = DawidSkene()
    start = time.perf_counter()
    labels = model.fit_predict(frame)
    seconds = time.perf_counter() - start
    return seconds, len(model.loss_history_), labels.reindex(range(len(votes)), fill_value=0).to_numpy()


def snorkel(votes):
    from snorkel.labeling.model import LabelModel

    votes = votes.astype(int)
    model = LabelModel(cardinality=2, verbose=False)
    start = time.perf_counter()
    model.fit(votes, seed=0, progress_bar=False)
    labels = model.predict(votes, tie_break_policy="random")
    return time.perf_counter() - start, model.train_config.n_epochs, labels


def main():
    if sys.argv[1] == "check":
        return check()
    import numpy as np

    votes = np.load(sys.argv[2])
    seconds, steps, labels = {"crowd-kit": crowd_kit, "snorkel": snorkel}[sys.argv[1]](votes)
    labels.astype(np.uint8).tofile(sys.argv[3])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "steps": int(steps), "peak_mb": peak}))


main()
