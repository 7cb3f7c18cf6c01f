// A server on Centrifuge, the library that Centrifugo is made of, for where Centrifugo itself is not to be had.
//
//	TOKEN_SECRET=… server -port 8000 -ping 25s -pong 8s
//	server -version
//
// It does what Centrifugo does with a configuration of a token secret, `allow_subscribe_for_client` and
// `allow_publish_for_subscriber`: a JWT with HS256 authenticates a connection, a client subscribes to any channel and
// publishes to those that it has subscribed to. No history, no presence, no join and leave, no compression, no logs.
// Intervals and limits that are set here are Centrifugo's defaults where the library's are others; the client's queue and
// its writer (`WriteDelay`, `MaxMessagesInFrame`, `ReplyWithoutQueue`) stay at the library's defaults, as with Centrifugo.
package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"github.com/centrifugal/centrifuge"
)

const library = "github.com/centrifugal/centrifuge"

func main() {
	port := flag.Int("port", 8000, "port on 127.0.0.1")
	ping := flag.Duration("ping", 25*time.Second, "between two pings of a connection")
	pong := flag.Duration("pong", 8*time.Second, "for the answer to a ping; less than -ping")
	version := flag.Bool("version", false, "print the versions of the library and of Go")
	flag.Parse()
	if *version {
		fmt.Println(versions())
		return
	}
	if err := serve(*port, *ping, *pong, []byte(os.Getenv("TOKEN_SECRET"))); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// versions tells what this program was built of.
func versions() string {
	found := "unknown"
	if build, ok := debug.ReadBuildInfo(); ok {
		for _, module := range build.Deps {
			if module.Path == library {
				found = module.Version
			}
		}
	}
	return fmt.Sprintf("centrifuge %s, %s", found, runtime.Version())
}

// serve answers connections until SIGINT or SIGTERM.
func serve(port int, ping, pong time.Duration, secret []byte) error {
	if len(secret) == 0 {
		return errors.New("TOKEN_SECRET is empty: set it to the secret that the tokens are signed with")
	}
	node, err := centrifuge.New(centrifuge.Config{
		ClientPresenceUpdateInterval: 27 * time.Second,
		ClientStaleCloseDelay:        10 * time.Second,
		HistoryMaxPublicationLimit:   300,
		RecoveryMaxPublicationLimit:  300,
	})
	if err != nil {
		return err
	}
	node.OnConnecting(func(_ context.Context, event centrifuge.ConnectEvent) (centrifuge.ConnectReply, error) {
		return connecting(event.Token, secret)
	})
	node.OnConnect(func(client *centrifuge.Client) {
		connected(node, client, secret)
	})
	if err := node.Run(); err != nil {
		return err
	}

	routes := http.NewServeMux()
	routes.Handle("/connection/websocket", centrifuge.NewWebsocketHandler(node, centrifuge.WebsocketConfig{
		PingPongConfig: centrifuge.PingPongConfig{PingInterval: ping, PongTimeout: pong},
	}))
	server := &http.Server{
		Addr:              net.JoinHostPort("127.0.0.1", strconv.Itoa(port)),
		Handler:           routes,
		ReadHeaderTimeout: 10 * time.Second,
	}

	ended, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	select {
	case err := <-failed:
		return err
	case <-ended.Done():
		within, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		return errors.Join(node.Shutdown(within), server.Shutdown(within))
	}
}

// connecting lets a connection in by its token.
func connecting(token string, secret []byte) (centrifuge.ConnectReply, error) {
	user, expires, err := verified(token, secret, time.Now())
	if err != nil {
		return centrifuge.ConnectReply{}, err
	}
	return centrifuge.ConnectReply{
		Credentials:       &centrifuge.Credentials{UserID: user, ExpireAt: expires},
		ClientSideRefresh: true,
	}, nil
}

// connected says what a client may do.
func connected(node *centrifuge.Node, client *centrifuge.Client, secret []byte) {
	client.OnRefresh(func(event centrifuge.RefreshEvent, done centrifuge.RefreshCallback) {
		_, expires, err := verified(event.Token, secret, time.Now())
		done(centrifuge.RefreshReply{ExpireAt: expires}, err)
	})
	client.OnSubscribe(func(_ centrifuge.SubscribeEvent, done centrifuge.SubscribeCallback) {
		done(centrifuge.SubscribeReply{ClientSideRefresh: true}, nil)
	})
	client.OnPublish(func(event centrifuge.PublishEvent, done centrifuge.PublishCallback) {
		if !client.IsSubscribed(event.Channel) {
			done(centrifuge.PublishReply{}, centrifuge.ErrorPermissionDenied)
			return
		}
		// With who has published, as Centrifugo does: that is on the wire.
		result, err := node.Publish(event.Channel, event.Data, centrifuge.WithClientInfo(event.ClientInfo))
		done(centrifuge.PublishReply{Result: &result}, err)
	})
}

// verified gives the user of a JWT (RFC 7519) signed with HS256, and when it expires, in seconds of Unix time.
// It returns DisconnectInvalidToken, or ErrorTokenExpired.
func verified(token string, secret []byte, now time.Time) (string, int64, error) {
	parts := bytes.Split([]byte(token), []byte("."))
	if len(parts) != 3 {
		return "", 0, centrifuge.DisconnectInvalidToken
	}
	var head struct {
		Algorithm string `json:"alg"`
	}
	if err := decoded(parts[0], &head); err != nil || head.Algorithm != "HS256" {
		return "", 0, centrifuge.DisconnectInvalidToken
	}
	signature, err := base64.RawURLEncoding.DecodeString(string(parts[2]))
	if err != nil {
		return "", 0, centrifuge.DisconnectInvalidToken
	}
	sum := hmac.New(sha256.New, secret)
	sum.Write([]byte(token)[:len(parts[0])+1+len(parts[1])])
	if !hmac.Equal(signature, sum.Sum(nil)) {
		return "", 0, centrifuge.DisconnectInvalidToken
	}
	var claims struct {
		User    string `json:"sub"`
		Expires int64  `json:"exp"`
	}
	if err := decoded(parts[1], &claims); err != nil {
		return "", 0, centrifuge.DisconnectInvalidToken
	}
	if claims.Expires > 0 && claims.Expires <= now.Unix() {
		return "", 0, centrifuge.ErrorTokenExpired
	}
	return claims.User, claims.Expires, nil
}

func decoded(part []byte, into any) error {
	text, err := base64.RawURLEncoding.DecodeString(string(part))
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}
