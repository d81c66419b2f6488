"""The traffic, step by step: the ego driven from outside, and copies that are driven on by themselves."""

import copy
from dataclasses import replace

import numpy as np
import pytest

from data_scripts.world.agents import Agent, place_agents
from data_scripts.world.road import GO_STRAIGHT, Leg, Path, lane_offset, make_legs, make_path
from data_scripts.world.traffic import Ego, Traffic

STEPS = 80  # 20 s


def traffic_of(seed: int) -> Traffic:
    rng = np.random.default_rng(seed)
    legs = make_legs(rng)
    path = make_path(rng, legs)
    agents = place_agents(rng, legs, opposite_lanes=1, limit=8.0)
    phases = rng.uniform(0, 13, sum(leg.has_light for leg in legs)).tolist()
    return Traffic(path, legs, agents, limit=8.0, phases=phases, ego_speed=6.0)


def state_of(traffic: Traffic) -> tuple:
    """Everything that can be read, to the bit."""
    arrays = traffic.poses().tobytes(), traffic.places().tobytes()
    return traffic.time, traffic.ego, arrays, traffic.statuses(), traffic.lights()


@pytest.mark.parametrize("seed", range(4))
def test_an_ego_driven_from_outside_along_its_own_way_changes_nothing(seed):
    driven, states = traffic_of(seed), []
    for _ in range(STEPS):
        driven.step()
        states.append(state_of(driven))
    outside = traffic_of(seed)
    for state in states:
        outside.step(state[1])
        assert state_of(outside) == state
    assert states[0][2] != states[-1][2] and states[0][1] != states[-1][1]


def test_a_copy_is_driven_on_like_the_first_and_does_not_touch_it():
    traffic = traffic_of(1)
    for _ in range(STEPS // 2):
        traffic.step()
    before, other = state_of(traffic), copy.deepcopy(traffic)
    for _ in range(STEPS // 2):
        other.step()
    assert state_of(traffic) == before != state_of(other)
    for _ in range(STEPS // 2):
        traffic.step()
    assert state_of(traffic) == state_of(other)


def test_the_ego_is_where_it_was_driven():
    traffic = traffic_of(2)
    given = replace(traffic.ego_at(12.0, 3.0), x=1.0, y=2.0, yaw=0.5, d=-4.0)
    traffic.step(given)
    assert traffic.ego == given and traffic.time == 0.25
    traffic.step()  # its own driver takes it back to its route
    assert traffic.ego.s > 12.0 and traffic.ego == traffic.ego_at(traffic.ego.s, traffic.ego.speed)


def straight_road(*agents: Agent, light_at: float | None = None) -> Traffic:
    """A road along x, with the ego at x = 0 at 8 m/s in the inner lane; a light is red for its first 6 s."""
    x = np.arange(-60.0, 400.0, 0.5)
    leg = Leg(0.0, 300.0, GO_STRAIGHT, 0, 0)
    if light_at is not None:
        leg.junction, leg.has_light = light_at + 9.0, True
    phases = [] if light_at is None else [7.0]
    return Traffic(Path(x, 0 * x, 0 * x), [leg], list(agents), limit=8.0, phases=phases, ego_speed=8.0)


def follower(s: float) -> Agent:
    return Agent("car", "blue", s, lane_offset(0), direction=1, speed=8.0, wanted_speed=8.0)


def test_those_behind_brake_for_an_ego_that_is_stopped_from_outside():
    traffic = straight_road(follower(-25.0))
    standing = Ego(0.0, lane_offset(0), 0.0, 0.0, 0.0, lane_offset(0))
    for _ in range(STEPS):
        traffic.step(standing)
    car = traffic.agents[0]
    assert car.speed == 0.0 and traffic.statuses() == ["stopped"] and -12.0 < car.s < -3.25
    aside = straight_road(follower(-25.0))
    for _ in range(STEPS):
        aside.step(replace(standing, d=-9.0))
    assert aside.agents[0].s > 100.0  # the ego stands beside the lane: nobody brakes


def test_the_egos_own_driver_stops_at_red_and_behind_a_stopped_car():
    at_light = straight_road(light_at=30.0)
    for _ in range(20):
        at_light.step()
    assert at_light.lights() == ["red"] and at_light.ego.speed < 2.0 and at_light.ego.s + 3.4 < 30.0
    for _ in range(STEPS):
        at_light.step()
    assert at_light.ego.s > 60.0
    stopped = Agent("car", "blue", 40.0, lane_offset(0), direction=1, speed=0.0, wanted_speed=0.0)
    behind = straight_road(stopped)
    for _ in range(STEPS):
        behind.step()
    assert behind.ego.speed == 0.0 and 20.0 < behind.ego.s + 3.4 < 40.0 - 2.25
