"""Two hosts on one machine: namespaces with an address, a disk and an sshd of their own, and a virtual cable between.

A host lives as long as the standard input of its first process is open: when the tests end, however they end, the
kernel ends all processes of its process namespace and takes its mounts and its end of the cable down.
"""
import os
import shutil
import subprocess
import time
from pathlib import Path

ADDRESSES = ("10.0.0.1", "10.0.0.2")
INTERFACE = "eth0"
PORT = 2222
PACKAGES = {"ip": "iproute2", "sshd": "openssh-server", "ssh-keygen": "openssh-client", "nsenter": "util-linux",
            "unshare": "util-linux", "mount": "mount"}
UNSHARE = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc"]
ENVIRONMENT = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
SSHD_CONFIG = """\
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PermitRootLogin yes
StrictModes no
UsePAM no
PidFile none
"""
FIRST_PROCESS = """\
set -e
echo host{number} > /proc/sys/kernel/hostname
mount --bind {own_disk} {disk}
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/ssh_config /etc/ssh/ssh_config
mount -t tmpfs none /run
mkdir /run/sshd
ip link set lo up
"$(command -v sshd)" -D -e -f {folder}/sshd_config 2> {folder}/sshd{number}.log &
echo up
read -r _ || true
"""


def what_is_missing():
    """What this machine lacks to be two hosts, in words; empty when it lacks nothing."""
    if os.geteuid():
        return "two hosts on one machine need root, to make namespaces"
    packages = {package for tool, package in PACKAGES.items() if not shutil.which(tool, path=ENVIRONMENT["PATH"])}
    if packages:
        return f"two hosts on one machine need the package(s) {', '.join(sorted(packages))}"
    link = "ip link add name left type veth peer name right && mount -t tmpfs none /run"
    trial = subprocess.run([*UNSHARE, "sh", "-c", link], capture_output=True, text=True, env=ENVIRONMENT)
    return f"this machine permits no namespaces, links or mounts: {trial.stderr.strip()}" if trial.returncode else ""


class Host:
    """A host, number 1 or 2, to which the folder `disk` is its own `own_disk`."""

    def __init__(self, number, own_disk, disk, folder):
        script = FIRST_PROCESS.format(number=number, own_disk=own_disk, disk=disk, folder=folder)
        self._life = subprocess.Popen([*UNSHARE, "sh", "-c", script], text=True, env=ENVIRONMENT,
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if self._life.stdout.readline() != "up\n":
            raise RuntimeError(f"host {number} does not start: {self._life.communicate()[1]}")
        self._commands = []
        self.pid, = Path(f"/proc/{self._life.pid}/task/{self._life.pid}/children").read_text().split()

    def start(self, *command, folder="/"):
        """Start a command in `folder` on this host; what it prints goes to one pipe."""
        enter = ["nsenter", "--target", self.pid, "--net", "--mount", "--uts", "--pid"]
        self._commands.append(subprocess.Popen(
            [*enter, "sh", "-c", 'cd "$0" && exec "$@"', folder, *map(str, command)], text=True, env=ENVIRONMENT,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        return self._commands[-1]

    def run(self, *command, folder="/", timeout=100):
        """Run a command that shall end well and return what it printed."""
        process = self.start(*command, folder=folder)
        output, _ = process.communicate(timeout=timeout)
        assert process.returncode == 0, output[-4000:]
        return output

    def end(self):
        """Return when no process of this host is left."""
        for command in self._commands:  # `nsenter` itself is outside, and if stopped would not let its command go
            command.kill()
            command.communicate()
        self._life.communicate(timeout=30)


def start_hosts(own_disks, disk, folder):
    """Return two hosts that reach each other at ADDRESSES; their keys, configuration and logs are in `folder`."""
    for name in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "sshd_config").write_text(SSHD_CONFIG.format(port=PORT, folder=folder))
    (folder / "ssh_config").write_text(f"UserKnownHostsFile {folder}/known_hosts\nBatchMode yes\n")
    # As Debian has it: a host's own name leads to itself alone.
    names = [f"127.0.1.1 host{number}\n" for number, _ in enumerate(ADDRESSES, 1)]
    (folder / "hosts").write_text("".join(["127.0.0.1 localhost\n", *names]))
    hosts = []
    try:
        for number, own_disk in enumerate(own_disks, 1):
            hosts.append(Host(number, own_disk, disk, folder))
        subprocess.run(["ip", "link", "add", "name", INTERFACE, "netns", hosts[0].pid, "type", "veth",
                        "peer", "name", INTERFACE, "netns", hosts[1].pid], check=True, env=ENVIRONMENT)
        for host, address in zip(hosts, ADDRESSES):
            host.run("ip", "address", "add", f"{address}/24", "dev", INTERFACE)
            host.run("ip", "link", "set", INTERFACE, "up")
        _wait_for_ssh(hosts[0], folder)
    except BaseException:
        end_hosts(hosts)
        raise
    return hosts


def end_hosts(hosts):
    for host in hosts:
        host.end()


def _wait_for_ssh(host, folder):
    """Return when host 1 can run a command on host 2."""
    for _ in range(20):
        ssh = host.start("ssh", "-o", "StrictHostKeyChecking=no", "-o", "ConnectTimeout=5", "-p", PORT,
                         "-i", folder / "key", ADDRESSES[1], "true")
        output, _ = ssh.communicate(timeout=30)
        if ssh.returncode == 0:
            return
        time.sleep(0.5)
    raise RuntimeError(f"no ssh from host 1 to host 2: {output}\n{(folder / 'sshd2.log').read_text()}")
