"""Backtest small forecasters in worker processes of Dask or Ray.

Arguments: the backend, and a folder for what is found.
"""

import pickle
import sys
import tempfile
from pathlib import Path

import torch
from sktime.forecasting.model_evaluation import evaluate
from sktime.split import ExpandingWindowSplitter
from support import METHODS, monthly


def folds(method, backend=None, backend_params=None):
    """Return two folds, the data and the fitted forecasters of each among what comes back."""
    return evaluate(
        method.sktime(context_length=6, horizon=2, max_steps=2),
        ExpandingWindowSplitter(fh=[1, 2], initial_window=40, step_length=5),
        monthly(50)["v0"],
        return_data=True,
        return_model=True,
        error_score="raise",
        backend=backend,
        backend_params=backend_params,
    )


def by_dask():
    import dask
    from distributed import Client, LocalCluster

    # otherwise Dask turns whatever is no number into text
    dask.config.set({"dataframe.convert-string": False})
    cluster = LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address=None,
    )
    with cluster, Client(cluster):
        return {method.name: folds(method, "dask") for method in METHODS}


def by_ray():
    import ray

    # Ray's sockets lie here, and their paths must be short
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        ray.init(
            num_cpus=2,
            object_store_memory=100 * 2**20,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
        )
        try:
            keep = {"shutdown_ray": False}
            return {method.name: folds(method, "ray", keep) for method in METHODS}
        finally:
            ray.shutdown()


def not_here(*args, **kwargs):
    raise AssertionError("trained in the main process")


def main(backend, folder):
    torch.set_num_threads(1)
    for method in METHODS:
        method.model.fit = not_here
    found = {"dask": by_dask, "ray": by_ray}[backend]()
    (Path(folder) / "found.pkl").write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
