"""Base of the darts models: builds the module, and adds what the engine offers to all of them."""

import dataclasses
import os
import time
from typing import Any, ClassVar, Self

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, StochasticWeightAveraging

from tsllm_estimators._options import EngineOptions
from tsllm_estimators._validate import check_bool, check_integer
from tsllm_estimators.darts import _artefact
from tsllm_estimators.darts._budget import TimeEstimate, interruptible
from tsllm_estimators.darts._callbacks import (
    BestWeights,
    EngineCallback,
    MovingAverage,
    is_kind,
)
from tsllm_estimators.darts._checks import warn_of_sizes
from tsllm_estimators.darts._compat import (
    MixedCovariatesTorchModel,
    TorchTrainingSample,
    train_sample_from_shapes,
)
from tsllm_estimators.darts._datasets import BuildsDatasets, on_observed
from tsllm_estimators.darts._language import fine_tune
from tsllm_estimators.darts._likelihoods import parameter_kinds
from tsllm_estimators.darts._module import NetworkModule
from tsllm_estimators.darts._prediction import PredictsPlainly
from tsllm_estimators.darts._reading import ReadsTexts
from tsllm_estimators.darts._runtime import apart, exclusive, exclusively, unchanged_by_errors
from tsllm_estimators.darts._windows import measured_windows
from tsllm_estimators.llm.fine_tuning import plain_adapter
from tsllm_estimators.networks import network_class
from tsllm_estimators.networks.base import Shapes


class NetworkModel(BuildsDatasets, ReadsTexts, PredictsPlainly, MixedCovariatesTorchModel):
    """Base of the darts models of this package.

    Parameters
    ----------
    input_chunk_length : int
        L, time steps that the model sees.
    output_chunk_length : int
        H, time steps that it forecasts at once; longer forecasts feed on their own output.
    output_chunk_shift : int
        Steps between the end of the input and the start of the forecast.
    n_epochs : int
        Epochs of training.
    use_static_covariates : bool
        Use the static covariates of the series, if they have any.
    **kwargs
        Any argument of darts' torch models: ``likelihood`` (None: point forecasts trained with
        the method's own loss; Gaussian, Laplace, Cauchy, Gumbel, quantiles; any other with
        ``normalization=None``), ``loss_fn`` (whose attribute ``degree``, if it has one, says with
        which power of the data's unit it grows: 0 if it is relative, else 1 is assumed, and 2 of
        ``MSELoss``), ``batch_size``, ``optimizer_kwargs`` (``lr``), ``lr_scheduler_cls``,
        ``random_state``, ``pl_trainer_kwargs``, ``save_checkpoints``...
    """

    method: ClassVar[str]
    trainer_params: dict[str, Any]
    training_summary: dict[str, Any]

    def __init__(self) -> None:
        # darts' metaclass has stored every argument of the constructor in model_params
        if "adapter" in self.model_params:
            self.model_params["adapter"] = plain_adapter(self.model_params["adapter"])
        with exclusive():
            super().__init__(**self._extract_torch_model_params(**self.model_params))
        self.pl_module_params = self._extract_pl_module_params(**self.model_params)
        self._considers_static_covariates = self.model_params["use_static_covariates"]
        self.training_summary = {}
        self._check_arguments()
        marker = self.model_params["missing_marker"]
        if marker is not None:  # numpy's numbers are none of JSON's
            self.model_params["missing_marker"] = float(marker)

    def _check_arguments(self) -> None:
        """Refuse at construction what could only fail later."""
        arguments = self.model_params
        check_integer("input_chunk_length", arguments["input_chunk_length"], 1)
        check_integer("output_chunk_length", arguments["output_chunk_length"], 1)
        parameter_kinds(arguments.get("likelihood"), arguments["normalization"])
        check_bool("use_static_covariates", arguments["use_static_covariates"])
        if arguments.get("use_reversible_instance_norm"):
            raise ValueError(
                "use_reversible_instance_norm must be False: the network normalises each window "
                "itself and brings every parameter of a likelihood back correctly."
            )
        network_class(self.method).Config(**self._settings)
        self._options  # noqa: B018 (validates itself)
        task_loss, default = arguments.get("task_loss"), self._settings_defaults["task_loss"]
        for other in ("likelihood", "loss_fn"):
            if arguments.get(other) is not None and task_loss != default:
                raise ValueError(
                    f"task_loss={task_loss!r} and {other} exclude each other; leave one out."
                )

    @property
    def _settings_defaults(self) -> dict[str, Any]:
        return network_class(self.method).Config.defaults()

    @property
    def _settings(self) -> dict[str, Any]:
        """Arguments of the network's config."""
        return {name: self.model_params[name] for name in self._settings_defaults}

    @property
    def _options(self) -> EngineOptions:
        names = [f.name for f in dataclasses.fields(EngineOptions)]
        return EngineOptions(**{name: self.model_params[name] for name in names})

    def _create_model(self, train_sample: TorchTrainingSample) -> NetworkModule:
        kinds, location = parameter_kinds(self.likelihood, self._settings["normalization"])
        static = train_sample.static_covariates
        (texts, n_texts), n_numbers = self._carried(), self._numbers(train_sample)
        shapes = Shapes(
            context_length=self.model_params["input_chunk_length"],
            horizon=self.model_params["output_chunk_length"],
            n_variates=train_sample.component_dims()["past_target"],
            parameters=kinds,
            location=location,
            n_past_covariates=n_numbers["past"],
            n_future_covariates=n_numbers["future"],
            n_static_covariates=0 if static is None else static.size,
            n_past_texts=n_texts["past"],
            n_future_texts=n_texts["future"],
        )
        uses_task_loss = self.likelihood is None and self.model_params.get("loss_fn") is None
        module = NetworkModule(
            method=self.method,
            settings=self._settings,
            shapes=dataclasses.asdict(shapes),
            task_loss=self._settings["task_loss"] if uses_task_loss else None,
            lr_schedule=self._options.lr_schedule,
            texts=texts,
            **self.pl_module_params,
        )
        if self._vocabulary is not None:
            texts_of_network: Any = module.network.texts
            texts_of_network.vocabulary, self._vocabulary = self._vocabulary, None
        return module

    def _setup_for_train(self, train_dataset: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Start from the checkpoint or from the data, choose what trains, add the callbacks."""
        is_new, options = self.model is None, self._options
        if is_new and options.checkpoint is None and options.fit_strategy != "full":
            raise ValueError(
                f"fit_strategy={options.fit_strategy!r} needs weights to start from, found none; "
                "pass checkpoint=, load weights first, or use fit_strategy='full'."
            )
        parameters = super()._setup_for_train(train_dataset, *args, **kwargs)
        module, trainer = parameters["model"], parameters["trainer"]
        shown, windows = trainer.progress_bar_callback is not None, None
        if is_new and options.checkpoint is not None:
            config = _artefact.read_config(options.checkpoint, self.method)
            _artefact.load_state(module, options.checkpoint, config)
        elif is_new:
            windows = measured_windows(train_dataset, module.as_batch)
            module.network.measure(windows)
            warn_of_sizes(windows.past_target.numpy(), module.network.unit.item())
            stage = module.network.language_modelling(windows)
            if stage is not None:
                self.training_summary["language_model"] = fine_tune(stage, trainer, shown)
        module.network.encode_texts(windows, shown, trainer.strategy.root_device)
        if options.fit_strategy in module.network.parts:
            module.network.train_part(options.fit_strategy)
        self.training_summary["n_windows"] = len(train_dataset)
        has_validation = parameters["datamodule"].val_dataset is not None
        self._add_callbacks(trainer, has_validation, module)
        return parameters

    def _train(self, trainer: Any, model: NetworkModule, *args: Any, **kwargs: Any) -> None:
        started = time.monotonic()
        with interruptible(trainer):
            super()._train(trainer, model, *args, **kwargs)
        self.training_summary |= {
            "n_steps": trainer.global_step,
            "n_epochs": trainer.current_epoch,
            "seconds": time.monotonic() - started,
            "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
            "prompts": model.network.prompts(),
        }
        self.training_summary |= model.network.after_training()
        for callback in trainer.callbacks:
            if isinstance(callback, EngineCallback):
                self.training_summary |= callback.summary()

    @property
    def _requires_training(self) -> bool:
        return super()._requires_training and self._options.fit_strategy != "zero-shot"

    def _add_callbacks(self, trainer: Any, has_validation: bool, module: NetworkModule) -> None:
        options = self._options
        ours: list[pl.Callback] = []
        patience = options.early_stopping_patience
        if has_validation and patience is not None:
            # an average that the user asked for is not to be replaced
            if not any(is_kind(c, StochasticWeightAveraging) for c in trainer.callbacks):
                ours.append(BestWeights())
            if not any(is_kind(c, EarlyStopping) for c in trainer.callbacks):
                ours.append(EarlyStopping("val_loss", patience=patience))
        if options.ema_decay is not None:
            ours.append(MovingAverage(options.ema_decay))
        if trainer.progress_bar_callback is not None:
            ours.append(TimeEstimate())
        if module.network.has_router:
            from tsllm_estimators.darts._routing import RoutingHistory

            ours.append(RoutingHistory())
        theirs = [c for c in trainer.callbacks if not isinstance(c, EngineCallback)]
        trainer.callbacks = ours + theirs

    def _setup_trainer(
        self, trainer: Any, model: Any, verbose: bool | None = None, epochs: int = 0
    ) -> pl.Trainer:
        # darts leaves these out of a model that was loaded without its trainer's arguments
        own: dict[str, Any] = self.trainer_params
        quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        self.trainer_params = {**quiet, **own}
        if verbose is None and "enable_progress_bar" not in self.trainer_params:
            verbose = False
        return super()._setup_trainer(trainer, model, verbose, epochs)

    def _setup_for_predict(
        self, *args: Any, trainer: pl.Trainer | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Let each process forecast everything: of several, each would return a part of it."""
        before = self.trainer
        parameters = super()._setup_for_predict(*args, trainer=trainer, **kwargs)
        if trainer is None and getattr(parameters["trainer"], "world_size", 1) > 1:
            parameters["trainer"] = self._alone(parameters["trainer"], kwargs.get("verbose"))
            self.trainer = before  # which knows the processes that trained
        return parameters

    def _alone(self, trainer: pl.Trainer | None, verbose: bool | None = None) -> pl.Trainer:
        """Return a trainer of this process alone, on the device that it has among others."""
        own = self.trainer_params
        alone: dict[str, Any] = {}
        if trainer is not None and trainer.world_size > 1:
            device = trainer.strategy.root_device
            alone = {"devices": [device.index] if device.type == "cuda" else 1}
            alone |= {"num_nodes": 1, "strategy": "auto"}
        self.trainer_params = {**own, **alone}
        try:
            with exclusive():
                return self._setup_trainer(None, self.model, verbose)
        finally:
            self.trainer_params = own

    def _setup_finetuning(self, model: NetworkModule) -> None:
        """Apply ``enable_finetuning`` to what trains; the frozen backbone stays frozen."""
        super()._setup_finetuning(model)
        for module in model.modules():
            if hasattr(module, "freeze_pristine"):
                module.freeze_pristine()

    def save(self, path: str | None = None, clean: bool = False) -> None:
        """Save the model as ``path`` (settings) and ``path.ckpt`` (weights).

        As darts' ``save``, but without the state of the optimiser, which darts never reads from
        a saved model; automatic checkpoints (``save_checkpoints=True``) have it, and resume. After
        a training on several processes each can save, without the others.

        Parameters
        ----------
        path : str, optional
            File to write; by default named after the class and the time.
        clean : bool
            Leave out the training series and the arguments of the trainer.
        """
        path = path or self._default_save_path() + ".pt"
        with open(path, "wb") as file:
            torch.save(self._clean() if clean else self, file)
        if self.model is not None:
            trainer = self.trainer
            # one of a training before load_weights has other weights; one of several processes
            # would wait for the others
            if (
                trainer is None
                or trainer.lightning_module is not self.model
                or trainer.world_size > 1
            ):
                trainer = self._alone(trainer)
                trainer.strategy.connect(self.model)
            trainer.save_checkpoint(path + ".ckpt", weights_only=True)

    def save_pretrained(self, directory: str | os.PathLike, **extra: Any) -> None:
        """Save what was learned as a directory to share, without pickle.

        Parameters
        ----------
        directory : str or path
            Is created; gets ``config.json``, ``model.safetensors``, ``adapters/`` in PEFT's own
            format and a model card. Neither training data nor frozen weights are in it.
        **extra
            Further plain values for ``config.json``.

        Raises
        ------
        ValueError
            If the model has not been fitted, or holds what only pickle could save.
        """
        if self.model is None:
            raise ValueError("save_pretrained needs a fitted model, found one without weights.")
        _artefact.write(self, directory, extra)

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike, **arguments: Any) -> Self:
        """Return a fitted model from a directory that ``save_pretrained`` of either face wrote.

        Parameters
        ----------
        directory : str or path
        **arguments
            Arguments of the constructor that are to differ, for instance ``pl_trainer_kwargs``,
            ``n_epochs``, ``fit_strategy`` or the ``backbone`` directory on this machine.

        Raises
        ------
        OSError
            If the directory is none of ours, incomplete or damaged.
        ValueError
            If it holds another method, or weights that do not fit the arguments.
        """
        config = _artefact.read_config(directory, cls.method)
        saved = _artefact.arguments_of(config)
        model = cls(**{**saved, **arguments})
        precision = (arguments.get("pl_trainer_kwargs") or {}).get("precision")
        dtype = _artefact.torch_dtype(config, precision)
        model.text_columns = config.get("text_columns")
        model.train_sample = train_sample_from_shapes(
            model._sample_shapes(config["sample_shapes"], saved),
            _artefact.series_dtype(config, dtype),
        )
        model.trainer_params["precision"] = precision or config["precision"]
        model.output_dim = model.train_sample.past_target.shape[1]
        with exclusive(), torch.random.fork_rng(devices=[]):
            model.model = model._init_model()
        model.model.to_dtype(dtype)
        _artefact.load_state(model.model, directory, config)
        model.training_summary = config["training"]
        model.encoders = model.initialize_encoders()
        model._fit_called = True
        model._update_covariates_use()
        return model

    @property
    def supports_past_covariates(self) -> bool:
        """Whether the method uses past covariates; darts refuses them where not."""
        return "past" in network_class(self.method).covariates_used

    @property
    def supports_future_covariates(self) -> bool:
        """Whether the method uses future covariates; darts refuses them where not."""
        return "future" in network_class(self.method).covariates_used

    @property
    def supports_static_covariates(self) -> bool:
        """Whether the method uses static covariates; darts leaves them out where not."""
        return "static" in network_class(self.method).covariates_used

    @property
    def _ckpt_skipped_params(self) -> list[str]:
        # what a model is made of is compared weight by weight, wherever its language model lies
        options = [f.name for f in dataclasses.fields(EngineOptions)]
        return [*super()._ckpt_skipped_params, *options, "backbone"]

    fit = exclusively(unchanged_by_errors(MixedCovariatesTorchModel.fit))
    fit_from_dataset = exclusively(unchanged_by_errors(MixedCovariatesTorchModel.fit_from_dataset))
    predict = exclusively(MixedCovariatesTorchModel.predict)
    predict_values = exclusively(PredictsPlainly.predict_values)
    predict_from_dataset = exclusively(PredictsPlainly.predict_from_dataset)
    historical_forecasts = on_observed(MixedCovariatesTorchModel.historical_forecasts)
    backtest = on_observed(MixedCovariatesTorchModel.backtest)
    residuals = on_observed(MixedCovariatesTorchModel.residuals)
    load = staticmethod(apart(MixedCovariatesTorchModel.load))
    load_from_checkpoint = staticmethod(apart(MixedCovariatesTorchModel.load_from_checkpoint))
    load_weights = apart(MixedCovariatesTorchModel.load_weights)
    load_weights_from_checkpoint = apart(MixedCovariatesTorchModel.load_weights_from_checkpoint)
    lr_find = exclusively(MixedCovariatesTorchModel.lr_find)
    scale_batch_size = exclusively(MixedCovariatesTorchModel.scale_batch_size)
