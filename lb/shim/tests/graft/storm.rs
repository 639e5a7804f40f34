//! A Go program that listens and closes over and over while its own runtime interrupts it with SIGURG: every call is
//! answered once.

use std::process::Command;

use sherd_lb::graft::Report;
use sherd_testkit::{Need, in_new_netns, needs};

use crate::{broker::SOON, rig::Rig};

const PROGRAM: &str = r#"
package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"
)

func spin(stop chan struct{}) {
	for n := 0; ; n++ {
		if n%(1<<20) == 0 {
			select {
			case <-stop:
				return
			default:
			}
		}
	}
}

func main() {
	turns, _ := strconv.Atoi(os.Args[1])
	stop := make(chan struct{})
	// More goroutines than CPUs that never yield: the runtime preempts them by SIGURG, all the time.
	for i := 0; i < 3; i++ {
		go spin(stop)
	}
	// And more than the runtime would.
	go func() {
		for {
			syscall.Kill(os.Getpid(), syscall.SIGURG)
			time.Sleep(20 * time.Microsecond)
		}
	}()
	for turn := 0; turn < turns; turn++ {
		// Each at an address of its own: the former inner socket may still listen.
		address := fmt.Sprintf("127.%d.%d.%d:9000", turn/62500, turn/250%250, 1+turn%250)
		listener, err := net.Listen("tcp4", address)
		if err != nil {
			fmt.Println(turn, err)
			os.Exit(1)
		}
		listener.Close()
	}
	close(stop)
	fmt.Println("done")
}
"#;

#[test]
fn every_listen_of_a_signal_storm_is_answered() {
    let name = "every_listen_of_a_signal_storm_is_answered";
    if !needs(name, &[Need::Root, Need::Bpf, Need::Program("go")]) {
        return;
    }
    let turns = if std::env::var("SHERD_PROVE").as_deref() == Ok("1") { 100_000 } else { 1_000 };
    let folder = tempfile::tempdir().expect("a folder");
    let (source, program) = (folder.path().join("storm.go"), folder.path().join("storm"));
    std::fs::write(&source, PROGRAM).expect("a folder of ours");
    let environment = [("CGO_ENABLED", "0"), ("GO111MODULE", "off"), ("GOFLAGS", "")];
    let built = Command::new("go").envs(environment).args(["build", "-o"]).arg(&program).arg(&source).status();
    assert!(built.expect("go").success());
    in_new_netns(move || {
        let rig = Rig::start(&[program.to_str().expect("UTF-8"), &turns.to_string()]);
        let mut grafted = 0;
        loop {
            match rig.reports.recv_timeout(SOON).expect("a report") {
                Report::Grafted(_) => grafted += 1,
                Report::NotGrafted { reason, .. } => panic!("after {grafted}: {reason}"),
                Report::Ended => break,
            }
        }
        assert_eq!(grafted, turns);
        assert_eq!(String::from_utf8_lossy(&rig.program.finish().stdout), "done\n");
    });
}
