"""Pitch that codes can tell, pulses of it, and a voice with other periods."""

import numpy as np
import pytest

from recipes.mini import overlap_add
from recipes.mini.pitch import FRAME, LEVELS, LOWEST, SAMPLE_RATE, features, on_grid, parts_of, periods, pulses


def glide(frames=40, low=110.0, high=290.0, silent=(0, 1, 20, 21, 39)):
    hertz = np.linspace(low, high, frames * 4)
    for frame in silent:
        hertz[frame * 4 : frame * 4 + 4] = 0
    return hertz.astype(np.float32)


def test_each_frame_takes_whole_sixths_and_ends_where_its_code_says():
    pitch = on_grid(glide())
    phase, voiced = pitch.phase.reshape(-1, FRAME), pitch.voiced.reshape(-1, FRAME)
    assert (pitch.codes > 0).tolist() == voiced.any(axis=1).tolist()
    assert 30 < (pitch.codes > 0).sum() < 40
    for frame in np.nonzero(pitch.codes)[0]:
        sixths, end = parts_of(pitch.codes[frame])
        assert phase[frame, -1] % 1 == pytest.approx(end / LEVELS, abs=1e-6) or end == 0
        assert np.cos(2 * np.pi * (phase[frame, -1] - end / LEVELS)) == pytest.approx(1, abs=1e-9)
        assert pitch.frequency.reshape(-1, FRAME)[frame].sum() / SAMPLE_RATE == pytest.approx(sixths / LEVELS)
        if pitch.codes[frame - 1]:
            assert end == (parts_of(pitch.codes[frame - 1])[1] + sixths) % LEVELS
        else:
            assert end == 0


def test_pitch_is_moved_by_less_than_a_twelfth_of_a_period():
    hertz = glide(silent=())
    pitch = on_grid(hertz)
    wanted = np.interp(np.arange(len(pitch.phase)), (np.arange(len(hertz)) + 0.5) * 300 - 0.5, hertz)
    off = (pitch.frequency - wanted).reshape(-1, FRAME).mean(axis=1)
    assert 0.3 < np.abs(off).max() <= SAMPLE_RATE / FRAME / LEVELS / 2 + 1e-6
    # Half the pitch has half the sixths.
    half = on_grid(hertz, 0.5)
    assert np.abs(parts_of(half.codes)[0] * 2 - parts_of(pitch.codes)[0]).max() <= 2


def test_pitch_goes_from_that_of_the_last_frame_to_its_own():
    pitch = on_grid(glide())
    frames = pitch.frequency.reshape(-1, FRAME)
    means = parts_of(pitch.codes)[0] / LEVELS * SAMPLE_RATE / FRAME
    for frame in np.nonzero(pitch.codes)[0]:
        first = means[frame - 1] if pitch.codes[frame - 1] else means[frame]
        assert frames[frame, [0, -1]] == pytest.approx([first, means[frame]], abs=0.05)


def test_what_cannot_be_told_is_moved_to_what_can():
    assert set(parts_of(on_grid(np.full(40, 500, np.float32)).codes)[0]) == {102}
    assert set(parts_of(on_grid(np.full(40, 45, np.float32)).codes)[0]) == {18}
    assert not on_grid(np.zeros(40, np.float32)).codes.any()


def test_pulses_are_the_harmonics_in_phase():
    pitch = on_grid(glide())
    harmonics = [np.cos(2 * np.pi * h * pitch.phase) * (h * pitch.frequency <= 2_000) for h in range(1, 60)]
    np.testing.assert_allclose(pulses(pitch, 2_000), np.where(pitch.voiced, sum(harmonics), 0), atol=1e-5)


def test_periods_begin_once_each():
    pitch = on_grid(np.full(80, 200, np.float32))
    assert set(np.diff(periods(pitch))) == {120}
    assert len(periods(pitch)) == pytest.approx(len(pitch.phase) / 120, abs=1)


def test_features_tell_codes_apart_and_what_a_frame_is_like():
    table = features(512)
    assert table.shape == (512, 81)
    assert np.abs(table).max() <= 1
    used = table[: 1 + LEVELS * (102 - LOWEST + 1)]
    distances = np.linalg.norm(used[:, None] - used, axis=-1) + 10 * np.eye(len(used))
    assert distances.min() > 0.3
    assert not table[len(used) :].any()
    pitch = on_grid(np.full(80, 213, np.float32))
    at = ((np.arange(24) + 0.5) / 24 * FRAME).astype(int) - 1
    for frame in (5, 9):
        expected = np.cos(2 * np.pi * pitch.phase.reshape(-1, FRAME)[frame][at])
        np.testing.assert_allclose(table[pitch.codes[frame], :24], expected, atol=0.01)


def test_a_voice_with_its_own_periods_is_as_it_was_and_with_others_has_those():
    pitch = on_grid(glide(silent=()))
    voice = pulses(pitch, 3_000) * 0.02
    inner = slice(4 * FRAME, -4 * FRAME)
    same = overlap_add.changed(voice, pitch, pitch, 1.0)
    assert same.shape == voice.shape
    assert np.sum((same - voice)[inner] ** 2) < 0.01 * np.sum(voice[inner] ** 2)
    half = on_grid(glide(silent=()), 0.5)
    lower = overlap_add.changed(voice, pitch, half, 0.88)
    fundamental = np.exp(-2j * np.pi * half.phase[inner])
    # Its own fundamental, which the source has not.
    assert abs(np.mean(lower[inner] * fundamental)) > 20 * abs(np.mean(voice[inner] * fundamental))


def test_what_has_no_voice_stays_what_it_is():
    nothing = on_grid(np.zeros(80, np.float32))
    noise = np.random.default_rng(0).standard_normal(len(nothing.phase)).astype(np.float32)
    inner = slice(FRAME, -FRAME)
    np.testing.assert_allclose(overlap_add.changed(noise, nothing, nothing, 1.0)[inner], noise[inner], atol=0.1)
