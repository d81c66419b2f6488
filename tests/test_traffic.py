"""The traffic, step by step: the ego driven from outside, and copies that are driven on by themselves."""

import copy
from dataclasses import replace

import numpy as np
import pytest

from data_scripts.world.agents import Agent, place_agents
from data_scripts.world.road import GO_STRAIGHT, TURN_LEFT, Leg, Path, lane_offset, make_legs, make_path
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
    for _ in range(STEPS // 2):  # its own driver takes it back to its route
        traffic.step()
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


def crosser(s: float) -> Agent:
    """Waits in the parking strip to the right, and walks to the one on the other side."""
    return Agent("pedestrian", "pink", s, -8.6, crossing=True, walk=(0.0, 2.0), walk_to=5.1)


def test_a_pedestrian_crosses_where_everyone_can_stop_and_then_stands_beside_the_lanes():
    oncoming = Agent("car", "blue", 60.0, lane_offset(-1), direction=-1, speed=8.0, wanted_speed=8.0)
    cyclist = Agent("bicycle", "cyan", 8.0, -7.15, direction=1, speed=4.0, wanted_speed=4.0, rider=True)
    traffic = straight_road(crosser(30.0), oncoming, cyclist)
    walked, nearest = [], []
    for _ in range(STEPS):
        traffic.step()
        pedestrian = traffic.agents[0]
        walked.append(pedestrian.speed > 0)
        for d, front in ((traffic.ego.d, 30.0 - traffic.ego.s - 3.4), (-7.15, 30.0 - cyclist.s - 0.9)):
            if pedestrian.speed > 0 and abs(pedestrian.d - d) < 1.5:
                nearest.append(front)
    assert any(walked) and not walked[-1]
    assert traffic.agents[0].d == 5.1 and traffic.statuses()[0] == "standing"
    assert len(nearest) > 4 and min(nearest) > 0.35
    assert traffic.ego.s > 60.0 and cyclist.s > 40.0 and oncoming.s < 0.0  # all of them have gone on


def test_a_pedestrian_does_not_cross_before_who_cannot_stop():
    traffic = straight_road(crosser(12.0))
    for _ in range(STEPS):
        traffic.step()
        assert traffic.agents[0].speed == 0.0 and traffic.agents[0].d == -8.6
    assert traffic.ego.s > 60.0


def test_cyclists_wait_behind_one_another():
    ahead = Agent("bicycle", "cyan", 30.0, -7.15, direction=1, rider=True)
    behind = Agent("bicycle", "cyan", 0.0, -7.15, direction=1, speed=4.0, wanted_speed=4.0, rider=True)
    traffic = straight_road(ahead, behind)
    for _ in range(STEPS):
        traffic.step()
    assert ahead.s == 30.0 and behind.speed == 0.0 and 20.0 < behind.s < 28.2


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


def drive(traffic: Traffic, seconds: float = 20.0) -> list[Ego]:
    """The ego at every step, driven by its own driver."""
    egos = [traffic.ego]
    for _ in range(int(seconds / 0.25)):
        traffic.step()
        egos.append(traffic.ego)
    return egos


def strongest_brake(egos: list[Ego]) -> float:
    return max((before.speed - after.speed) / 0.25 for before, after in zip(egos, egos[1:], strict=False))


def parked_truck(s: float) -> Agent:
    return Agent("truck", "tan", s, lane_offset(0), direction=1, parked=True, blocks=True)


def test_the_ego_goes_round_a_blocked_lane_and_returns():
    traffic = straight_road(parked_truck(60.0))
    assert traffic.scenarios() == []
    egos = drive(traffic)
    beside = [ego for ego in egos if 60.0 - 3.5 - 3.4 < ego.s < 60.0 + 3.5 + 1.0]
    assert beside and all(lane_offset(0) - ego.d > 0.95 + 1.25 + 0.2 for ego in beside)
    assert egos[-1].s > 100.0 and egos[-1].d == lane_offset(0) and strongest_brake(egos) < 4.0


def test_the_ego_waits_before_a_blocked_lane_while_others_pass_and_a_copy_decides_alike():
    passing = [Agent("car", "blue", s, lane_offset(1), direction=1, speed=5.0, wanted_speed=5.0) for s in (18.0, 6.0)]
    passing += [Agent("bus", "teal", 48.0, lane_offset(1), direction=1, wanted_speed=6.0, stop_from=0, stop_until=9)]
    traffic = straight_road(parked_truck(60.0), *passing)
    first = drive(traffic, 8.0)
    assert "blocked_lane" in traffic.scenarios() and traffic.ego.speed == 0.0
    assert 60.0 - 3.5 - (traffic.ego.s + 3.4) > 10.0 and strongest_brake(first) < 4.0
    other = copy.deepcopy(traffic)
    rest = drive(traffic, 30.0)
    assert rest == drive(other, 30.0) and rest[-1].s > 80.0 and rest[-1].d == lane_offset(0)


def test_a_vehicle_cuts_in_before_the_ego_and_the_ego_can_brake():
    car = Agent("car", "blue", 16.0, lane_offset(1), direction=1, speed=7.0, wanted_speed=5.5)
    car.joins, car.joins_after = lane_offset(0), 2.0
    traffic, gaps, active = straight_road(car), [], False
    egos = [traffic.ego]
    for _ in range(STEPS):
        before = car.joining
        traffic.step()
        egos.append(traffic.ego)
        active |= traffic.scenarios() == ["cut_in"]
        if car.joining and not before:
            gaps.append(car.s - 2.25 - traffic.ego.s - 3.4)
    assert len(gaps) == 1 and 9.0 < gaps[0] < 16.0 and active
    assert car.d == lane_offset(0) and car.yaw_offset == 0.0 and strongest_brake(egos) < 4.0
    assert car.s - 2.25 - traffic.ego.s - 3.4 > 3.0


def test_a_parked_car_pulls_out_and_waits_where_the_ego_could_not_brake():
    def pulling_out(s):
        car = Agent("car", "blue", s, -8.8, direction=1, parked=True, wanted_speed=6.0)
        car.joins = lane_offset(1)
        traffic = straight_road(car)
        traffic.legs[0].lane = traffic.legs[0].new_lane = 1
        traffic.ego = traffic.ego_at(0.0, 8.0)
        return car, traffic

    car, traffic = pulling_out(50.0)
    egos = drive(traffic)
    assert car.d == lane_offset(1) and car.speed > 3.0 and strongest_brake(egos) < 4.0
    assert car.s - 2.25 - traffic.ego.s - 3.4 > 3.0 and traffic.statuses() == ["moving"]
    car, traffic = pulling_out(14.0)
    drive(traffic)
    assert car.d == -8.8 and traffic.statuses() == ["parked"] and traffic.ego.s > 100.0


def left_turn(*agents: Agent) -> Traffic:
    rng = np.random.default_rng(0)
    legs = make_legs(rng, (GO_STRAIGHT, TURN_LEFT), lane=0)
    for leg in legs:
        leg.has_light = False
    for a in agents:
        a.street, a.s = legs[1].bend_start, a.s + legs[1].bend_start
    return Traffic(make_path(rng, legs), legs, list(agents), limit=8.0, phases=[], ego_speed=7.0)


def oncoming(u: float) -> Agent:
    return Agent("car", "blue", u, lane_offset(-1), -1, 6.0, 6.0, yaw_offset=np.pi)


def test_the_ego_lets_oncoming_traffic_pass_before_it_turns_left():
    alone, waiting = left_turn(), left_turn(oncoming(55.0), oncoming(75.0))
    turn, names, apart = waiting.legs[1], set(), []
    for _ in range(STEPS):
        alone.step()
        waiting.step()
        names.update(waiting.scenarios())
        poses = waiting.poses()
        apart.append(np.hypot(poses[:, 0] - waiting.ego.x, poses[:, 1] - waiting.ego.y).min())
    assert names == {"oncoming_turn"} and waiting.ego.s < alone.ego.s - 8.0
    assert waiting.ego.s > turn.end and min(apart) > 3.0
    assert all(a.s < turn.bend_start for a in waiting.agents)  # they have passed, on the lane beside the ego's


def test_those_who_come_straight_on_stop_for_an_ego_that_stands_in_their_way():
    traffic = left_turn(oncoming(60.0))
    place = traffic.ego_at(traffic.legs[1].bend_start + 10.0, 0.0)
    for _ in range(STEPS):
        traffic.step(place)
    x, y, *_ = traffic.poses()[0]
    assert traffic.statuses() == ["stopped"] and 4.0 < np.hypot(x - place.x, y - place.y) < 12.0
