# SPDX-License-Identifier: Apache-2.0
"""Small TensorFlow datasets that tests write, as `tfds build` would leave them."""


def write(folder, name, features, splits):
    """Write a prepared dataset, version 1.0.0, and return the folder that holds it.

    Args:
        folder: receives NAME/1.0.0.
        name: of the dataset.
        features: its `tfds.features.FeaturesDict`.
        splits: split -> examples.
    """
    import tensorflow_datasets as tfds

    place = folder / name / "1.0.0"
    place.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(
        name=name, version=tfds.core.Version("1.0.0"), data_dir=str(place), module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=1000)
    writer.initialize_splits(list(splits))
    writer.add_examples(splits)
    writer.close_all()
    return place
