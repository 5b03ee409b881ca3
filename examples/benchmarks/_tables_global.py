"""Tables of global learning: one model for the hourly series of M4."""

from statistics import mean

from _tables import by_settings, rows, settings, table


def m4() -> str:
    """Return the mean test errors over the seeds of each run and its settings, the best first."""
    tested = [row for row in rows("m4") if row["split"] == "test"]
    groups = by_settings(row for row in tested if row["series"] == 414)
    body = []
    for runs in sorted(groups, key=lambda runs: mean(row["owa"] for row in runs)):
        validation = [row["validation_owa"] for row in runs if "validation_owa" in row]
        body.append(
            [
                runs[0]["run"],
                f"{mean(row['smape'] for row in runs):.2f}",
                f"{mean(row['mase'] for row in runs):.3f}",
                f"{mean(row['owa'] for row in runs):.3f}",
                ", ".join(f"{row['owa']:.4f}" for row in runs),
                f"{mean(validation):.3f}" if validation else "",
                f"{runs[0].get('trainable_parameters', 0):,}",
                f"{mean(row.get('fit_cpu_seconds', 0) for row in runs):.0f}",
                settings(runs[0]),
            ]
        )
    header = ["run", "sMAPE, %", "MASE", "OWA", "OWA per seed", "validation, OWA"]
    return table([*header, "trainable", "CPU s to fit", "settings"], body)


def m4_validation() -> str:
    """Return the validation errors that settings were chosen by, the best first."""
    body = [
        [
            row["run"],
            f"{row['smape']:.2f}",
            f"{row['mase']:.3f}",
            f"{row['owa']:.3f}",
            str(row["seed"]),
            settings(row),
        ]
        for row in sorted(rows("m4_validation"), key=lambda row: row["owa"])
    ]
    return table(["run", "sMAPE, %", "MASE", "OWA", "seed", "settings"], body)


def m4_unseen() -> str:
    """Return the test errors of the series that a training did not see."""
    body = []
    for row in rows("m4"):
        if "share" not in row["settings"] or row["split"] != "test":
            continue
        fitted = row.get("fit_strategy", "zero-shot")
        body.append(
            [
                f"{row['settings']['share']:.0%}",
                fitted,
                f"{row['smape']:.2f}",
                f"{row['mase']:.3f}",
                f"{row['owa']:.4f}",
                f"{row['trainable_parameters']:,}" if fitted != "zero-shot" else "0",
                f"{row['fit_cpu_seconds']:.0f}" if "fit_strategy" in row else "",
                str(row["seed"]),
            ]
        )
    header = ["trained on, of the series", "then fitted to the others", "sMAPE, %", "MASE", "OWA"]
    return table([*header, "trainable in the fit", "CPU s to fit", "seed"], body)


BUILDERS = {"m4": m4, "m4_validation": m4_validation, "m4_unseen": m4_unseen}
