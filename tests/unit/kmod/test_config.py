from __future__ import annotations

import pytest

from kodojo.errors import InputError
from kodojo.kmod.config import ModprobeConfig, parse_softdep


def test_every_directive_is_read_with_names_folded(config_file):
    directory = config_file(
        a="# comment\nalias my-* some-mod\nblacklist bad-mod\noptions a-b x=1\ty=2\n"
        "install i-m /bin/true\nremove r-m /bin/false\nsoftdep s-m pre: a\n"
    )
    config = ModprobeConfig.read([directory])
    assert config.aliases == [("my_*", "some_mod")]
    assert config.blacklist == ["bad_mod"]
    assert config.options == [("a_b", "x=1 y=2")]
    assert config.install_command("i_m") == "/bin/true"
    assert config.remove_command("r_m") == "/bin/false"
    assert config.softdep("s_m", []).pre == ("a",)
    assert config.problems == []


@pytest.mark.parametrize(
    ("text", "options", "problems"),
    [
        ("options m a=1 \\\nb=2\n", "a=1 b=2", 0),
        ("options m a=1\\\n\\\n b=2", "a=1 b=2", 0),
        ("options m a=\\d\\\\e\n", "a=d\\e", 0),
        ("options m a=1 \\\\\nb=2\n", "a=1 \\", 1),
        ("options m a=1\\", "a=1", 0),
        ("options m a=1\\\n", "a=1", 0),
    ],
)
def test_a_backslash_joins_lines_and_is_dropped_elsewhere(config_file, text, options, problems):
    """As kmod's freadline_wrapped: the rule is the same for every character behind the backslash."""
    config = ModprobeConfig.read([config_file(a=text)])
    assert (config.options, len(config.problems)) == ([("m", options)], problems)


def test_the_number_of_a_wrapped_line_is_that_of_its_end(config_file):
    """A bad line is named by the number of its last part, as kmod counts."""
    config = ModprobeConfig.read([config_file(a="bad \\\n\\\nx\nworse")])
    assert [problem.split(" line ")[1].split(":")[0] for problem in config.problems] == ["3", "4"]


def test_a_weakdep_is_read_and_loads_nothing(config_file):
    """kmod 33 and newer know the directive; it is for programs that make an initramfs."""
    config = ModprobeConfig.read([config_file(a="weakdep a-b c  d\nweakdep m\n", z="weakdep z y\n")])
    assert (config.weakdeps_before, config.weakdeps_after) == ([("a_b", "c  d")], [("z", "y")])
    assert config.softdep("a_b", []) == parse_softdep("")
    assert len(config.problems) == 1  # without a list it is a bad line


def test_the_lines_of_showconfig(config_file):
    """Grouped as modprobe -c groups them, soft dependencies of the modules between those of the files."""
    text = "alias a-* m\nsoftdep s pre: x  y post: z\nblacklist b\noptions o p=1\ninstall i /bin/true\n"
    text += "remove r c\nweakdep w u"
    assert ModprobeConfig.read([config_file(a=text)]).lines([("own", "post: tail")], [("own", "u")]) == [
        "blacklist b",
        "install i /bin/true",
        "remove r c",
        "alias a_* m",
        "options o p=1",
        "softdep s pre: x ypost: z",  # as kmod prints it
        "softdep own post: tail",
        "weakdep w u",
        "weakdep own u",
    ]


def test_bad_lines_are_told_with_file_and_number(config_file):
    directory = config_file(a="blacklist ok\nnonsense x\nalias onlyone\noptions m\ninclude other\nblacklist a]\n")
    problems = ModprobeConfig.read([directory]).problems
    path = directory / "a.conf"
    assert problems == [
        f"{path} line 2: ignoring bad line starting with 'nonsense'",
        f"{path} line 3: ignoring bad line starting with 'alias'",
        f"{path} line 4: ignoring bad line starting with 'options'",
        f"{path}: command include is deprecated and not parsed anymore",
        f"{path} line 6: ignoring bad line starting with 'blacklist'",
    ]


def test_only_files_that_end_in_conf_are_read(config_file):
    directory = config_file(a="blacklist yes\n")
    (directory / "a.conf.bak").write_text("blacklist no\n")
    (directory / ".hidden.conf").write_text("blacklist no\n")
    assert ModprobeConfig.read([directory]).blacklist == ["yes"]


def test_of_two_files_with_one_name_the_first_directory_counts(config_file, tmp_path):
    first = config_file(a="blacklist first\n")
    second = tmp_path / "second"
    second.mkdir()
    (second / "a.conf").write_text("blacklist second\n")
    assert ModprobeConfig.read([first, second]).blacklist == ["first"]


def test_a_softdep_wins_over_the_modules_own_if_its_file_sorts_before_modules_softdep(config_file):
    own = [("m", "pre: own")]
    config = ModprobeConfig.read([config_file(a="softdep m pre: early\n", z="softdep m pre: late\n")])
    assert config.softdep("m", own).pre == ("early",)
    late = ModprobeConfig(softdeps_after=[("m", "pre: late")])
    assert late.softdep("m", own).pre == ("own",)
    assert late.softdep("m", []).pre == ("late",)


def test_words_before_pre_and_post_do_not_count():
    softdep = parse_softdep("gcm pre: a b post: c pre: d")
    assert (softdep.pre, softdep.post) == (("a", "b", "d"), ("c",))


def test_the_kernels_command_line_gives_options_and_a_blacklist():
    line = 'quiet a-b.x=1 modprobe.blacklist=c,d "p.q=two words" r.s="t u" nodot=1 .=\n'
    config = ModprobeConfig.read([], line)
    assert config.options[:3] == [("a_b", "x=1"), ("p", 'q="two words"'), ("r", 's="t u"')]
    assert config.blacklist == ["c", "d"]


def test_nothing_of_the_host_is_read():
    assert ModprobeConfig.read() == ModprobeConfig()


def test_a_file_that_cannot_be_read_is_an_input_error(config_file):
    directory = config_file()
    (directory / "a.conf").symlink_to(directory / "nowhere")
    with pytest.raises(InputError, match=r"a\.conf: cannot be read"):
        ModprobeConfig.read([directory])
